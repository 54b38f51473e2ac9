"""A real Git LFS server for tests, in front of an upstream: batch API, basic transfers both ways, locks; and faults.

`LfsServer(place, upstream)` listens on a port of its own and hands everything but `/info/lfs` on to `upstream`, so that
`url(name)` is a repository with LFS, as on a forge. A second port is there for objects that another host has.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import json
import re
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from tests.support.upstream import HttpUpstream

MEDIA = "application/vnd.git-lfs+json"
_LFS = re.compile(r"/(?P<repo>.+?)(?:\.git)?/info/lfs/(?P<rest>.+)")
_BLOCK = 64 * 1024


def pointer_of(data: bytes) -> bytes:
    """The pointer that stands in git for an object."""
    return (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{hashlib.sha256(data).hexdigest()}\nsize {len(data)}\n"
    ).encode()


@dataclass(frozen=True)
class LfsRequest:
    """One request for LFS. `is_other` says that it came to the second port; header names are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    is_other: bool

    @property
    def what(self) -> str:
        """`batch`, `object`, `upload`, `locks` or the rest of the path."""
        if self.path.startswith("/objects/"):
            return "upload" if self.method == "PUT" else "object"
        rest = self.path.partition("/info/lfs/")[2]
        return "batch" if rest == "objects/batch" else rest.partition("/")[0].partition("?")[0]


@dataclass
class LfsFaults:
    """What the server does wrong or differently. Set at any time; `LfsServer.reset` turns all of it off."""

    password: str = ""
    """The batch API answers 401 to requests without this password."""
    token: str = ""
    """Objects are given only to requests with `Authorization: Bearer TOKEN`, which the batch answer hands out."""
    elsewhere: bool = False
    """The hrefs lead to the second port."""
    href: Callable[[str, str], str] | None = None
    """Makes the href of (repo, oid), instead."""
    header: dict[str, str] = field(default_factory=dict)
    """More headers of each action."""
    expires_at: str = ""
    hang_batch: bool = False
    hang_objects: bool = False
    batch_status: int = 0
    object_status: int = 0
    retry_after: int | None = None
    redirect_batch: str = ""
    """Answer the batch with 307 to this URL."""
    redirect_objects: str = ""
    """Answer each object with 302 to this URL."""
    mangle: Callable[[bytes], bytes] | None = None
    """Changes the bytes of each object on its way."""
    length: int | None = None
    """The Content-Length of each object, instead of the true one."""
    cut_after: int | None = None
    """Close the connection after this many bytes of an object."""
    slow: int | None = None
    """Bytes of an object per second."""
    answer: Callable[[dict[str, Any]], Any] | None = None
    """Makes the batch answer of the true one."""


class LfsServer:
    """LFS in front of an upstream. A context manager; the constructor starts it."""

    def __init__(self, place: Path, upstream: HttpUpstream | None = None) -> None:
        self.place = place
        place.mkdir(parents=True, exist_ok=True)
        self.upstream = upstream
        self.faults = LfsFaults()
        self.closing = threading.Event()
        self._requests: list[LfsRequest] = []
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._servers = [_Server(self, is_other) for is_other in (False, True)]
        self.port, self.other_port = (server.server_address[1] for server in self._servers)
        self._threads = [
            threading.Thread(target=each.serve_forever, args=(0.02,), daemon=True) for each in self._servers
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> LfsServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop: let hung requests end, cut connections, join the threads."""
        self.closing.set()
        for server, thread in zip(self._servers, self._threads, strict=True):
            server.shutdown()
            thread.join(60)
            server.server_close()
        with self._lock:
            for each in self._sockets:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def url(self, name: str) -> str:
        """The repository's URL, for git and for git-lfs."""
        return f"http://127.0.0.1:{self.port}/{name}"

    def reset(self) -> None:
        """Turn every fault off."""
        self.faults = LfsFaults()

    # What it has

    def add(self, repo: str, data: bytes) -> str:
        """Store an object of a repository; return its id."""
        oid = hashlib.sha256(data).hexdigest()
        path = self.path(repo, oid)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return oid

    def path(self, repo: str, oid: str) -> Path:
        """Where an object of a repository is, which need not exist."""
        return self.place / repo.replace("/", "+") / oid

    # What was asked

    @property
    def requests(self) -> list[LfsRequest]:
        """The LFS requests so far, oldest first."""
        with self._lock:
            return list(self._requests)

    def count(self, what: str) -> int:
        """How many requests were for `batch`, `object`, `upload` or `locks`."""
        return sum(each.what == what for each in self.requests)

    def forget(self) -> None:
        """Empty the request log."""
        with self._lock:
            self._requests.clear()

    def note(self, request: LfsRequest) -> None:
        """Log one request."""
        with self._lock:
            self._requests.append(request)

    def opened(self, connection: socket.socket) -> None:
        """Register a connection."""
        with self._lock:
            self._sockets.add(connection)

    def closed(self, connection: socket.socket) -> None:
        """Unregister a connection."""
        with self._lock:
            self._sockets.discard(connection)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, owner: LfsServer, is_other: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.owner = owner
        self.is_other = is_other

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        self.owner.opened(request)
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.owner.closed(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnected."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the log is `LfsServer.requests`."""

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", "0")))
        found = bytearray()
        while size := int(self.rfile.readline().split(b";")[0], 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return bytes(found)

    def _answer(self) -> None:
        body, owner = self._body(), self.server.owner
        match = _LFS.fullmatch(urlsplit(self.path).path)
        if match is None and not self.path.startswith("/objects/"):
            self._hand_on(body)
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        owner.note(LfsRequest(self.command, self.path, headers, body, self.server.is_other))
        if match is None:
            self._object(body)
        elif owner.faults.password and not self._knows_password(owner.faults.password):
            self._say(401, {"message": "credentials needed"}, {"LFS-Authenticate": 'Basic realm="lfs"'})
        elif match["rest"] == "objects/batch":
            self._batch(match["repo"], json.loads(body))
        elif match["rest"] in ("locks/verify", "locks") and self.command in ("GET", "POST"):
            both = match["rest"] == "locks/verify"
            self._say(200, {"ours": [], "theirs": []} if both else {"locks": []})
        else:
            self._say(404, {"message": "no such thing"})

    def _knows_password(self, password: str) -> bool:
        kind, _, encoded = self.headers.get("Authorization", "").partition(" ")
        return kind.lower() == "basic" and base64.b64decode(encoded).decode().partition(":")[2] == password

    def _batch(self, repo: str, request: dict[str, Any]) -> None:
        owner, faults = self.server.owner, self.server.owner.faults
        self._hang(lambda: owner.faults.hang_batch)
        if faults.redirect_batch:
            self._say(307, {}, {"Location": faults.redirect_batch})
            return
        if faults.batch_status:
            self._say(faults.batch_status, {"message": "as the test wants it"})
            return
        port = owner.other_port if faults.elsewhere else owner.port
        objects: list[dict[str, Any]] = []
        for each in request["objects"]:
            oid, path = each["oid"], owner.path(repo, each["oid"])
            href = faults.href(repo, oid) if faults.href else f"http://127.0.0.1:{port}/objects/{repo}/{oid}"
            action: dict[str, Any] = {"href": href, "header": {**faults.header}}
            if faults.token:
                action["header"]["Authorization"] = f"Bearer {faults.token}"
            if faults.expires_at:
                action["expires_at"] = faults.expires_at
            known: dict[str, Any] = {"oid": oid, "size": each["size"]}
            if request["operation"] == "upload":
                known |= {} if path.exists() else {"actions": {"upload": action}}
            elif path.exists():
                known |= {"actions": {"download": action}, "authenticated": True}
            else:
                known |= {"error": {"code": 404, "message": "no such object"}}
            objects.append(known)
        answer: Any = {"transfer": "basic", "objects": objects}
        self._say(200, faults.answer(answer) if faults.answer else answer)

    def _object(self, body: bytes) -> None:
        owner, faults = self.server.owner, self.server.owner.faults
        repo, _, oid = urlsplit(self.path).path.removeprefix("/objects/").rpartition("/")
        path = owner.path(repo, oid)
        if self.command == "PUT":
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(body)
            self._say(200, {})
            return
        self._hang(lambda: owner.faults.hang_objects)
        if faults.token and self.headers.get("Authorization") != f"Bearer {faults.token}":
            self._say(403, {"message": "not with this"})
        elif faults.redirect_objects:
            self._say(302, {}, {"Location": faults.redirect_objects})
        elif faults.object_status:
            self._say(faults.object_status, {"message": "as the test wants it"})
        elif not path.exists():
            self._say(404, {"message": "no such object"})
        else:
            self._send(path.read_bytes())

    def _send(self, data: bytes) -> None:
        faults = self.server.owner.faults
        data = faults.mangle(data) if faults.mangle else data
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(len(data) if faults.length is None else faults.length))
        self.end_headers()
        block = _BLOCK if faults.slow is None else max(1, faults.slow // 20)
        block = min(block, faults.cut_after or block)
        for at in range(0, len(data), block):
            if faults.cut_after is not None and at >= faults.cut_after:
                self.close_connection = True
                return
            self.wfile.write(data[at : at + block])
            if faults.slow is not None and self.server.owner.closing.wait(block / faults.slow):
                break
        if faults.length is not None or faults.slow is not None:
            self.close_connection = True

    def _hang(self, still: Callable[[], object]) -> None:
        while still() and not self.server.owner.closing.wait(0.02):
            pass

    def _say(self, status: int, document: Any, headers: Mapping[str, str] | None = None) -> None:
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", MEDIA)
        self.send_header("Content-Length", str(len(data)))
        after = self.server.owner.faults.retry_after
        for name, value in {**(headers or {}), **({} if after is None else {"Retry-After": str(after)})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def _hand_on(self, body: bytes) -> None:
        """Let the upstream answer, and pass that on."""
        upstream = self.server.owner.upstream
        if upstream is None or self.server.is_other:
            self._say(404, {"message": "there is nothing here"})
            return
        connection = http.client.HTTPConnection("127.0.0.1", upstream.port, timeout=60)
        skipped = ("connection", "transfer-encoding", "content-length", "host")
        try:
            connection.request(
                self.command,
                self.path,
                body=body or None,
                headers={name: value for name, value in self.headers.items() if name.lower() not in skipped},
            )
            answer = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in (*skipped, "server", "date"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
