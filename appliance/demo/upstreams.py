"""The upstreams: bare repositories over HTTP, as a forge serves them. One that is down answers 503.

The server runs `git upload-pack` itself, because `git http-backend` and `git daemon` are not part of every package of
git. It knows as much of HTTP as git sends.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path

from appliance.core.errors import GitmirrorError
from appliance.core.process.children import Children
from appliance.core.process.run import run_child

DEADLINE = 60.0
"""Seconds for one git command. They take milliseconds, but a machine may be suspended."""
MOST_HEAD = 64 * 1024
MOST_BODY = 16 * 2**20
_SERVICE = "git-upload-pack"
_CONFIG = """\
[core]
	repositoryformatversion = 0
	bare = true
[uploadpack]
	allowFilter = true
	allowAnySHA1InWant = true
"""


@dataclass
class Upstreams:
    """Bare repositories below `root`. `down` has the names of those that fail."""

    root: Path
    children: Children
    env: Mapping[str, str]
    down: set[str] = field(default_factory=set)
    _server: asyncio.Server | None = None

    async def open(self) -> None:
        """Listens on a free port of the loopback. Raises OSError."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=MOST_HEAD)

    def close(self) -> None:
        """Stops listening."""
        if self._server is not None:
            self._server.close()

    def url(self, name: str) -> str:
        """The URL of a repository."""
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/{name}"

    async def create(self, name: str, stream: bytes) -> None:
        """Makes a repository with the commits of a stream for `git fast-import`. Raises GitmirrorError."""
        await asyncio.to_thread(_make_bare, self._path(name))
        await self.commit(name, stream)

    async def commit(self, name: str, stream: bytes) -> str:
        """Adds the commits of a stream, and returns the new id of main. Raises GitmirrorError."""
        await self._git(name, "fast-import", "--quiet", stdin=stream)
        return (await self._git(name, "rev-parse", "refs/heads/main")).decode().strip()

    async def tidy(self, name: str) -> None:
        """Packs what many commits left in loose files. Raises GitmirrorError."""
        await self._git(name, "gc", "--quiet")

    def _path(self, name: str) -> Path:
        return self.root / f"{name}.git"

    async def _git(self, name: str, *args: str, stdin: bytes = b"", protocol: str = "") -> bytes:
        said = bytearray()
        code, output = await run_child(
            self.children,
            ["git", *args],
            env={**self.env, "GIT_PROTOCOL": protocol},
            cwd=self._path(name),
            deadline=DEADLINE,
            on_error=said.extend,
            stdin=stdin,
        )
        if code != 0:
            raise GitmirrorError(f"git {args[0]} in {self._path(name)} failed: {said.decode(errors='replace').strip()}")
        return output

    # HTTP

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            # A client may hang up at any time, or send what is not HTTP. At the end, this task is cancelled.
            with contextlib.suppress(OSError, EOFError, ValueError, asyncio.LimitOverrunError, asyncio.CancelledError):
                while await self._answer(reader, writer):
                    pass
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answers one request. Returns whether another may follow."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, target, _ = head[0].split(" ")
        headers = {key.strip().lower(): value.strip() for key, _, value in (line.partition(":") for line in head[1:])}
        length = int(headers.get("content-length", "0"))
        if "transfer-encoding" in headers or not 0 <= length <= MOST_BODY:
            await _send(writer, 411, "text/plain", b"this demo reads no such requests\n")
            return False
        body = await reader.readexactly(length)
        if headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        name, _, rest = target.removeprefix("/").partition("/info/refs?")
        name = name.removesuffix(f"/{_SERVICE}").removesuffix(".git")
        if name in self.down:
            await _send(writer, 503, "text/plain", b"down for maintenance\n")
        elif ".." in name or not (self._path(name) / "HEAD").is_file():
            await _send(writer, 404, "text/plain", b"no such repository\n")
        elif method == "GET" and rest == f"service={_SERVICE}":
            protocol = headers.get("git-protocol", "")
            refs = await self._git(name, "upload-pack", "--stateless-rpc", "--advertise-refs", ".", protocol=protocol)
            service = b"" if "version=2" in protocol else b"001e# service=git-upload-pack\n0000"
            await _send(writer, 200, f"application/x-{_SERVICE}-advertisement", service + refs)
        elif method == "POST" and target.endswith(f"/{_SERVICE}"):
            protocol = headers.get("git-protocol", "")
            pack = await self._git(name, "upload-pack", "--stateless-rpc", ".", stdin=body, protocol=protocol)
            await _send(writer, 200, f"application/x-{_SERVICE}-result", pack)
        else:
            await _send(writer, 403, "text/plain", b"this upstream is for reading\n")
        return True


async def _send(writer: asyncio.StreamWriter, status: int, kind: str, body: bytes) -> None:
    lines = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        f"Content-Type: {kind}",
        f"Content-Length: {len(body)}",
        "Cache-Control: no-cache",
    )
    writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
    await writer.drain()


def _make_bare(path: Path) -> None:
    """What `git init --bare` makes, without a process for each."""
    (path / "objects").mkdir(parents=True)
    (path / "refs").mkdir()
    (path / "HEAD").write_bytes(b"ref: refs/heads/main\n")
    (path / "config").write_text(_CONFIG)
