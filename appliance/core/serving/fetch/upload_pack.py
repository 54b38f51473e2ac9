"""Runs `git upload-pack` for one request of protocol v2, or for one of v0 over HTTP."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from appliance.core.process.children import Child, Children
from appliance.core.serving.fetch.relayed import KEPT_WORDS
from appliance.core.serving.net.streams import CHUNK, Sink, SocketStream

ENOUGH_CHILDREN = 32
"""upload-packs at work at once; more only slow each other down, so the others wait."""
FLOWING = 8192
"""Bytes of an answer after which its pack flows: from then on the guest sets the pace, and that takes no place."""


class UploadPackError(Exception):
    """upload-pack ended badly; what it wrote is not a whole answer."""


class UploadPack:
    """Starts upload-packs with one environment. `slowly` runs them for nobody in particular."""

    def __init__(self, children: Children, environment: Mapping[str, str], idle: float) -> None:
        self._children = children
        self._environment = dict(environment)
        self._idle = idle
        self._places = asyncio.Semaphore(ENOUGH_CHILDREN)

    async def write(self, mirror: Path, request: bytes, output: int, *, slowly: bool = False) -> None:
        """One v2 request, answered into an open file. Raises UploadPackError; the group is gone when it returns."""
        async with self._place():
            child = self._start(["--stateless-rpc", str(mirror)], request, output, version=2, slowly=slowly)
            await _succeed(child)

    async def stream(self, mirror: Path, request: bytes | Spool, sink: Sink, *arguments: str, version: int = 2) -> None:
        """One request, answered straight to a guest as fast as that takes it.

        Raises UploadPackError, IdleTimeout, OSError.
        """
        async with self._place() as give_back:
            await self._run(mirror, request, sink, arguments, version, give_back)

    async def collect(
        self, mirror: Path, request: bytes, *arguments: str, version: int, setting: str | None = None
    ) -> bytes:
        """The whole answer to a request that is light work: it waits for no place. Raises UploadPackError.

        `setting`, as `name=value`, is put on top of git's configuration.
        """
        sink = _Collected()
        await self._run(mirror, request, sink, arguments, version, lambda: None, setting)
        return bytes(sink.data)

    async def _run(
        self,
        mirror: Path,
        request: bytes | Spool,
        sink: Sink,
        arguments: Sequence[str],
        version: int,
        flowing: Callable[[], None],
        setting: str | None = None,
    ) -> None:
        received = 0
        ours, theirs = socket.socketpair()
        with ours:
            ours.setblocking(False)
            with theirs:
                words = ["--stateless-rpc", *arguments, str(mirror)]
                child = self._start(words, request, theirs.fileno(), version=version, setting=setting)
            try:
                source = SocketStream(ours, self._idle)
                while data := await source.receive(CHUNK):
                    received += len(data)
                    if received > FLOWING:
                        flowing()
                    await sink.send(data)
            except BaseException:
                await asyncio.shield(child.end())
                raise
            await _succeed(child)

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[Callable[[], None]]:
        """One of ENOUGH_CHILDREN places; what it yields gives it back early."""
        await self._places.acquire()
        held = True

        def give_back() -> None:
            nonlocal held
            if held:
                held = False
                self._places.release()

        try:
            yield give_back
        finally:
            give_back()

    def _start(
        self,
        words: Sequence[str],
        request: bytes | Spool,
        output: int,
        *,
        version: int,
        slowly: bool = False,
        setting: str | None = None,
    ) -> Child:
        spool = Spool(request) if isinstance(request, bytes) else request
        try:
            environment = self._environment | ({"GIT_PROTOCOL": f"version={version}"} if version else {})
            prefix = ["nice", "-n", "10"] if slowly else []
            git = ["git", "-c", setting] if setting else ["git"]
            return self._children.start(
                [*prefix, *git, "upload-pack", "--strict", f"--timeout={max(1, round(self._idle))}", *words],
                env=environment,
                stdin=spool.rewind(),
                stdout=output,
                stderr=subprocess.DEVNULL,
            )
        finally:
            if spool is not request:
                spool.close()


class Spool:
    """A request in a file in memory: it needs nobody to feed it, however large it is, and is there once only."""

    def __init__(self, data: bytes = b"") -> None:
        self._descriptor = os.memfd_create("request", os.MFD_CLOEXEC)
        self.head = bytearray()
        self.size = 0
        self.write(data)

    def write(self, data: bytes) -> None:
        """More of it. Raises OSError."""
        self.head += data[: max(0, KEPT_WORDS - len(self.head))]
        self.size += len(data)
        while data:
            data = data[os.write(self._descriptor, data) :]

    def rewind(self) -> int:
        """The descriptor, from its beginning on."""
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        return self._descriptor

    def close(self) -> None:
        """Gives the memory back, once no child reads it any more."""
        os.close(self._descriptor)


class _Collected:
    def __init__(self) -> None:
        self.data = bytearray()

    async def send(self, data: bytes) -> None:
        self.data += data

    async def send_file(self, file: int, offset: int, count: int) -> None:
        self.data += os.pread(file, count, offset)


async def _succeed(child: Child) -> None:
    try:
        code = await child.wait()
    except asyncio.CancelledError:
        with suppress(ProcessLookupError):
            await asyncio.shield(child.end())
        raise
    if code != 0:
        raise UploadPackError(f"git upload-pack ended with {code}")
