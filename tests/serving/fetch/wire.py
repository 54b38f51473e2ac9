"""Guests by hand on both ports: v2 requests byte by byte, HTTP as it goes over the wire, and what git itself says."""

from __future__ import annotations

import contextlib
import gzip
import io
import socket
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPResponse
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any
from urllib.parse import urlsplit

import h11

from tests.support.gitutil import clean_env, run_process
from tests.support.pkt import DELIM, FLUSH, daemon_request, pkt, read_pkt, read_pkts
from tests.support.serve import Serve

CAPABILITIES = ("agent=test/1", "object-format=sha1")
"""What git sends with every command."""
SHALLOW = ("no-progress", "include-tag", "ofs-delta", "deepen 1")
"""The arguments of a clone of depth 1, without its wants."""


def v2_request(command: str, arguments: Iterable[str] = (), capabilities: Sequence[str] = CAPABILITIES) -> bytes:
    """One v2 command with its arguments, as git writes it."""
    lines = [pkt(f"{line}\n") for line in (f"command={command}", *capabilities)]
    return b"".join([*lines, DELIM, *(pkt(f"{line}\n") for line in arguments), FLUSH])


def fetch_request(wants: str | Iterable[str], *arguments: str, capabilities: Sequence[str] = CAPABILITIES) -> bytes:
    """A `fetch` of a guest that has nothing."""
    wanted = [wants] if isinstance(wants, str) else wants
    return v2_request("fetch", [*arguments, *(f"want {oid}" for oid in wanted), "done"], capabilities)


# git://


def open_v2(serve: Serve, repo: str, *, timeout: float = 60.0) -> socket.socket:
    """A git:// connection that has read the capabilities."""
    sock = daemon_request(*serve.git_address, "git-upload-pack", f"/{repo}", ["version=2"], timeout=timeout)
    assert read_pkts(sock)[0] == b"version 2\n"
    return sock


def read_answer(sock: socket.socket) -> bytes:
    """The bytes of one answer, up to and with its flush. Less when the other side ends or resets before that."""
    data = bytearray()
    with contextlib.suppress(ConnectionResetError):
        while head := _exactly(sock, 4):
            data += head
            size = int(head, 16) if len(head) == 4 else 0
            if size == 0:
                break
            data += _exactly(sock, max(size - 4, 0))
    return bytes(data)


def ask(serve: Serve, repo: str, request: bytes, *, timeout: float = 60.0) -> bytes:
    """One command over git:// and the bytes of its answer."""
    with open_v2(serve, repo, timeout=timeout) as sock:
        sock.sendall(request)
        return read_answer(sock)


def ask_git(mirror: Path, request: bytes, *, version: int = 2) -> bytes:
    """What git's own upload-pack answers to one stateless request on `mirror`."""
    env = clean_env(mirror, GIT_PROTOCOL=f"version={version}")
    return run_process(["git", "upload-pack", "--stateless-rpc", str(mirror)], env=env, input=request).stdout


def pack_of(answer: bytes) -> bytes:
    """The pack within a v2 answer to `fetch`."""
    pack, at, inside = bytearray(), 0, False
    while at < len(answer):
        size = int(answer[at : at + 4], 16)
        line = answer[at + 4 : at + size]
        inside = inside or line == b"packfile\n"
        if inside and line[:1] == b"\1":
            pack += line[1:]
        at += max(size, 4)
    return bytes(pack)


def error_of(sock: socket.socket) -> str:
    """The text of the ERR packet that comes next."""
    line = read_pkt(sock) or b""
    assert line.startswith(b"ERR "), line
    return line[4:].decode()


# HTTP


@dataclass(frozen=True)
class Reply:
    """A whole answer over HTTP. `complete` is false when it was cut off."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    complete: bool = True


class _KeptReader(io.BufferedReader):
    """Stays open when an answer is done."""

    def close(self) -> None:
        """It ends with its socket."""


class HttpGuest:
    """One kept-alive connection to an HTTP port, spoken by hand. A context manager."""

    def __init__(self, url: str, *, timeout: float = 60.0) -> None:
        split = urlsplit(url)
        assert split.hostname and split.port
        self.host = split.netloc
        self.sock = socket.create_connection((split.hostname, split.port), timeout=timeout)
        self._reader = _KeptReader(socket.SocketIO(self.sock, "r"))

    def __enter__(self) -> HttpGuest:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sock.close()

    def head(self, method: str, target: str, headers: Mapping[str, str], version: str = "1.1") -> bytes:
        """The bytes of a request's line and headers."""
        lines = [f"{method} {target} HTTP/{version}", f"Host: {self.host}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    def send(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        version: str = "1.1",
    ) -> None:
        """Send a request, with its length when there is a body."""
        length = {} if body is None else {"Content-Length": str(len(body))}
        self.sock.sendall(self.head(method, target, {**(headers or {}), **length}, version) + (body or b""))

    def read(self, method: str = "GET") -> Reply:
        """Read one answer to its end."""
        # It only asks its socket for a reader; this one goes on with the next answer.
        stand_in: Any = SimpleNamespace(makefile=lambda mode: self._reader)
        with HTTPResponse(stand_in, method=method) as response:
            response.begin()
            headers = {name.lower(): value for name, value in response.getheaders()}
            try:
                return Reply(response.status, headers, response.read())
            except Exception as error:
                return Reply(response.status, headers, getattr(error, "partial", b""), complete=False)

    def rest(self) -> bytes:
        """What comes up to the end of the connection."""
        return self._reader.read()

    def ask(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        version: str = "1.1",
    ) -> Reply:
        """A request and its answer."""
        self.send(method, target, headers, body, version)
        return self.read(method)


def http_ask(
    url: str, method: str = "GET", headers: Mapping[str, str] | None = None, body: bytes | None = None
) -> Reply:
    """One request on a connection of its own."""
    split = urlsplit(url)
    target = (split.path or "/") + (f"?{split.query}" if split.query else "")
    with HttpGuest(url) as guest:
        return guest.ask(method, target, headers, body)


def post_headers(service: str = "git-upload-pack", version: int = 2, **extra: str) -> dict[str, str]:
    """What git sends with a POST; `extra` names have `_` for `-`."""
    headers = {"Content-Type": f"application/x-{service}-request", "Accept": f"application/x-{service}-result"}
    if version:
        headers["Git-Protocol"] = f"version={version}"
    return headers | {name.replace("_", "-"): value for name, value in extra.items()}


def chunked(body: bytes, size: int) -> bytes:
    """A body in chunks of `size` bytes."""
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


# What git itself sends


@dataclass
class Recorder:
    """A proxy in front of a port that keeps what guests say, a connection each. A context manager."""

    target: tuple[str, int]
    said: list[bytearray] = field(default_factory=list)

    def __enter__(self) -> Recorder:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for thread in self._threads:
            thread.join(60)

    def requests(self) -> list[bytes]:
        """What each connection said so far; call it when the guests are done."""
        return [bytes(each) for each in self.said]

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                guest, _ = self._listening.accept()
                server = socket.create_connection(self.target)
                kept = bytearray()
                self.said.append(kept)
                for source, sink, keep in ((guest, server, kept), (server, guest, None)):
                    thread = threading.Thread(target=_copy, args=(source, sink, keep))
                    thread.start()
                    self._threads.append(thread)


def _copy(source: socket.socket, sink: socket.socket, keep: bytearray | None) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            if keep is not None:
                keep += data
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


def posted_bodies(said: bytes) -> Iterator[tuple[dict[str, str], bytes]]:
    """Headers and decoded bodies of the POSTs that one HTTP connection said."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(said)
    headers: dict[str, str] = {}
    body = bytearray()
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Request):
            headers = {name.decode(): value.decode() for name, value in event.headers} | {
                "method": event.method.decode()
            }
            body = bytearray()
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            if headers["method"] == "POST":
                plain = gzip.decompress(bytes(body)) if headers.get("content-encoding") == "gzip" else bytes(body)
                yield headers, plain
            connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
            connection.send(h11.EndOfMessage())
            connection.start_next_cycle()
        else:
            return


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (part := sock.recv(min(size - len(data), 1 << 20))):
        data += part
    return data
