"""Runs `git upload-pack` for one request of protocol v2, or for one of v0 over HTTP."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

from appliance.core.git.complaints import Hear, hears_nothing
from appliance.core.process.children import Child, Children
from appliance.core.process.error_output import error_output
from appliance.core.serving.fetch.relayed import RECORDED_BYTES
from appliance.core.serving.net.streams import CHUNK, Sink, SocketStream

ENOUGH_CHILDREN = 32
"""upload-packs that run at once. More would only slow each other down, so the others wait."""
FLOWING = 8192
"""Bytes of a response after which its pack is flowing. The slot is released then, because from there on the guest sets
the pace."""


class UploadPackError(Exception):
    """upload-pack failed, so its output is not a complete response."""


class UploadPack:
    """Runs upload-packs with one environment. `idle` bounds each wait for bytes, in seconds.

    `hear` gets each mirror with the error output of git there.
    """

    def __init__(
        self, children: Children, environment: Mapping[str, str], idle: float, hear: Hear = hears_nothing
    ) -> None:
        self._children = children
        self._environment = dict(environment)
        self._idle = idle
        self._hear = hear
        self._slots = asyncio.Semaphore(ENOUGH_CHILDREN)

    async def write(
        self, mirror: Path, request: bytes, output: int, on_begun: Callable[[], None], *, slowly: bool = False
    ) -> None:
        """Writes the response to one v2 request into an open file. Raises UploadPackError.

        The whole process group has ended when this returns. `on_begun` is called when it no longer waits for a slot.
        `slowly` runs it niced, when no guest waits for it.
        """
        async with self._slot():
            on_begun()
            with error_output(partial(self._hear, mirror)) as errors:
                options = ["--stateless-rpc", str(mirror)]
                child = self._start(options, request, output, errors, version=2, slowly=slowly)
                await _succeed(child)

    async def stream(self, mirror: Path, request: bytes | Spool, sink: Sink, *arguments: str, version: int = 2) -> None:
        """Answers one request directly to a guest, as fast as the guest reads.

        Raises UploadPackError, IdleTimeout, OSError.
        """
        async with self._slot() as release:
            await self._run(mirror, request, sink, arguments, version, release)

    async def collect(
        self, mirror: Path, request: bytes, *arguments: str, version: int, setting: str | None = None
    ) -> bytes:
        """The whole response to a request that is little work, so it waits for no slot. Raises UploadPackError.

        `setting`, as `name=value`, overrides git's configuration.
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
        on_flowing: Callable[[], None],
        setting: str | None = None,
    ) -> None:
        received = 0
        with error_output(partial(self._hear, mirror)) as errors:
            ours, theirs = socket.socketpair()
            with ours:
                ours.setblocking(False)
                with theirs:
                    options = ["--stateless-rpc", *arguments, str(mirror)]
                    child = self._start(options, request, theirs.fileno(), errors, version=version, setting=setting)
                try:
                    source = SocketStream(ours, self._idle)
                    while data := await source.receive(CHUNK):
                        received += len(data)
                        if received > FLOWING:
                            on_flowing()
                        await sink.send(data)
                except BaseException:
                    await asyncio.shield(child.end())
                    raise
                await _succeed(child)

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[Callable[[], None]]:
        """Holds one of ENOUGH_CHILDREN slots. Yields a function that releases it early."""
        await self._slots.acquire()
        held = True

        def release() -> None:
            nonlocal held
            if held:
                held = False
                self._slots.release()

        try:
            yield release
        finally:
            release()

    def _start(
        self,
        options: Sequence[str],
        request: bytes | Spool,
        output: int,
        errors: int,
        *,
        version: int,
        slowly: bool = False,
        setting: str | None = None,
    ) -> Child:
        spool = Spool(request) if isinstance(request, bytes) else request
        try:
            environment = self._environment | ({"GIT_PROTOCOL": f"version={version}"} if version else {})
            git = ["git", "-c", setting] if setting else ["git"]
            return self._children.start(
                [*git, "upload-pack", "--strict", f"--timeout={max(1, round(self._idle))}", *options],
                env=environment,
                stdin=spool.rewind(),
                stdout=output,
                stderr=errors,
                nice=10 if slowly else 0,
            )
        finally:
            if spool is not request:
                spool.close()


class Spool:
    """A request in a memory file: git reads it without our help, whatever its size, and it is in memory only once."""

    def __init__(self, data: bytes = b"") -> None:
        self._descriptor = os.memfd_create("request", os.MFD_CLOEXEC)
        self.head = bytearray()
        self.size = 0
        self.write(data)

    def write(self, data: bytes) -> None:
        """Appends to the request. Raises OSError."""
        self.head += data[: max(0, RECORDED_BYTES - len(self.head))]
        self.size += len(data)
        while data:
            data = data[os.write(self._descriptor, data) :]

    def rewind(self) -> int:
        """The descriptor, positioned at the beginning."""
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        return self._descriptor

    def close(self) -> None:
        """Frees the memory once no child reads the file any more."""
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
        raise UploadPackError(f"git upload-pack ended with exit code {code}")
