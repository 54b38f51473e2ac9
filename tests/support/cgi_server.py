"""A small HTTP server in front of `git http-backend` that misbehaves on demand.

`git http-backend` speaks the protocol; this server only carries bytes to and from it. What a refresh asks each second
takes a quarter of its processes: the capabilities of protocol v2, which are the same for each repository with the same
config, are asked for once, and upload-pack is started without the CGI program that would start it. Tests use it
through `tests.support.upstream`.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import functools
import gzip
import io
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any, cast
from urllib.parse import unquote, urlsplit

from tests.support.gitutil import clean_env, git
from tests.support.traffic import Gone, Request, Traffic

_BLOCK = 64 * 1024
_FETCH = "application/x-git-upload-pack"
_INNER = ("/info/refs", "/git-upload-pack", "/git-receive-pack", "/HEAD", "/objects/")


@functools.cache
def _program(name: str) -> str:
    """`git http-backend` without the `git` that would start it: a third of what one of its small answers costs."""
    return f"{git('--exec-path')}/git-{name}"


_capabilities: dict[tuple[bytes, str], bytes] = {}
"""What `git http-backend` answers to `info/refs` in protocol v2, by the config of the repository and `Git-Protocol`."""


class CgiServer(ThreadingHTTPServer):
    """The server for one period of listening, on a socket that already listens."""

    def __init__(self, listening: socket.socket, traffic: Traffic) -> None:
        super().__init__(listening.getsockname(), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        self.traffic = traffic

    def accept_all(self) -> None:
        """Accepts connections until the listening socket is shut down. `serve_forever` would look 50 times a second."""
        while True:
            try:
                self.process_request(*self.socket.accept())
            except OSError as error:
                if error.errno == errno.EINVAL:
                    return
                print(f"the upstream accepts nothing: {error!r}", file=sys.stderr)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread. It is registered before it starts, so that stopping finds every thread."""
        thread = threading.Thread(target=self._serve_one, args=(request, client_address), daemon=True)
        self.traffic.connect(request, thread)
        thread.start()

    def _serve_one(self, request: Any, client_address: Any) -> None:
        self.process_request_thread(request, client_address)
        self.traffic.disconnect(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Name the error of a client that disconnected; print the traceback of every other error."""
        error = sys.exception()
        if isinstance(error, (ConnectionError, TimeoutError)):
            print(f"the upstream lost {client_address}: {error!r}", file=sys.stderr)
        else:
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = _BLOCK
    disable_nagle_algorithm = True
    server: CgiServer

    def do_GET(self) -> None:
        """Answer a GET: `info/refs`, or a file for a dumb client."""
        self._answer()

    def do_POST(self) -> None:
        """Answer a POST: `git-upload-pack` or `git-receive-pack`."""
        self._answer()

    def handle(self) -> None:
        """Serve a connection, and name one that ended before it asked for anything."""
        self.requestline = ""
        super().handle()
        if not self.requestline:
            print(f"the upstream was asked nothing by {self.client_address}", file=sys.stderr)

    def log_error(self, format: str, *args: object) -> None:
        """Name what ends a connection without an exception: a timeout, or a request that is none."""
        print(f"the upstream ends {self.client_address}: {format % args}", file=sys.stderr)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing, because the request log is `Traffic.requests`."""

    def _answer(self) -> None:
        try:
            with tempfile.TemporaryFile() as body:
                self._dispatch(body)
            self.wfile.flush()
        except (Gone, ConnectionError, TimeoutError) as error:
            print(f"the upstream cuts off {self.client_address}, {self.requestline}: {error!r}", file=sys.stderr)
            self.close_connection = True

    def _dispatch(self, body: IO[bytes]) -> None:
        traffic = self.server.traffic
        split = urlsplit(self.path)
        name, inner = _locate(unquote(split.path))
        service = inner[1:] if inner.startswith("/git-") else ""
        if inner == "/info/refs":
            service = split.query.partition("service=")[2].partition("&")[0]
        user, password = self._credentials()
        protocol = self.headers.get("Git-Protocol", "")
        traffic.note(Request(self.command, self.path, name, service, protocol, user))
        self._read_body(body)
        if traffic.faults(name).hang:
            traffic.hang(self.connection, lambda: traffic.faults(name).hang)
        faults = traffic.faults(name)
        if faults.fail:
            self._say(500)
        elif faults.status:
            self._say(faults.status, "Retry-After", str(faults.retry_after or ""), faults.page)
        elif faults.require_password and (user, password) != (faults.user, faults.password):
            self._say(401, "WWW-Authenticate", 'Basic realm="upstream"')
        elif faults.not_found or not name or not (traffic.root / f"{name}.git" / "HEAD").exists():
            self._say(404)
        else:
            self._run_backend(name, inner, split.query, user, body)

    def _say(self, status: int, header: str = "", value: str = "", page: bytes = b"") -> None:
        text = page or f"the upstream answers {status}\n".encode()
        self.send_response(status)
        if value:
            self.send_header(header, value)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _credentials(self) -> tuple[str, str]:
        kind, _, encoded = self.headers.get("Authorization", "").partition(" ")
        if kind.lower() != "basic":
            return "", ""
        user, _, password = base64.b64decode(encoded).decode().partition(":")
        return user, password

    def _read_body(self, body: IO[bytes]) -> None:
        """Decode the request body (transfer and content encoding) into `body`, and rewind it."""
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                self._copy(size, body)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
        else:
            self._copy(int(self.headers.get("Content-Length", "0")), body)
        body.seek(0)
        if self.headers.get("Content-Encoding", "") in ("gzip", "x-gzip"):
            plain = gzip.decompress(body.read())
            body.seek(0)
            body.truncate()
            body.write(plain)
            body.seek(0)

    def _copy(self, size: int, body: IO[bytes]) -> None:
        while size:
            block = self.rfile.read(min(size, _BLOCK))
            if not block:
                raise Gone
            body.write(block)
            size -= len(block)

    def _run_backend(self, name: str, inner: str, query: str, user: str, body: IO[bytes]) -> None:
        traffic = self.server.traffic
        repo = traffic.root / f"{name}.git"
        config, protocol = _plain_config(repo), self.headers.get("Git-Protocol", "")
        body.flush()
        env = clean_env(
            traffic.root,
            GIT_PROJECT_ROOT=str(traffic.root),
            GIT_HTTP_EXPORT_ALL="1",
            REQUEST_METHOD=self.command,
            PATH_INFO=f"/{name}.git{inner}",
            QUERY_STRING=query,
            CONTENT_TYPE=self.headers.get("Content-Type", ""),
            CONTENT_LENGTH=str(os.fstat(body.fileno()).st_size) if self.command == "POST" else None,
            REMOTE_ADDR=self.client_address[0],
            REMOTE_USER=user or None,
            GIT_PROTOCOL=protocol or None,
            GIT_CONFIG_COUNT="1",
            GIT_CONFIG_KEY_0="http.receivepack",
            GIT_CONFIG_VALUE_0="true" if traffic.push else "false",
        )
        if config and (self.command, self.headers.get("Content-Type")) == ("POST", f"{_FETCH}-request"):
            head = [("Expires", "Fri, 01 Jan 1980 00:00:00 GMT"), ("Content-Type", f"{_FETCH}-result")]
            with self._child([_program("upload-pack"), "--stateless-rpc", str(repo)], env, body) as output:
                self._send(name, 200, head, output)
            return
        always = config and query == "service=git-upload-pack" and protocol == "version=2"
        if always and (known := _capabilities.get((config, protocol))):
            self._relay(name, cast(io.BufferedReader, io.BytesIO(known)))
            return
        with self._child([_program("http-backend")], env, body) as output:
            if always:
                answer = output.read()
                if answer.startswith(b"Expires:") and answer.endswith(b"0000"):
                    _capabilities[config, protocol] = answer
                output = cast(io.BufferedReader, io.BytesIO(answer))
            self._relay(name, output)

    @contextlib.contextmanager
    def _child(self, argv: list[str], env: dict[str, str], body: IO[bytes]) -> Iterator[io.BufferedReader]:
        child = subprocess.Popen(
            argv, env=env, stdin=body, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        )
        with self.server.traffic.running(child):
            yield cast(io.BufferedReader, child.stdout)
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

    def _relay(self, name: str, output: io.BufferedReader) -> None:
        """Forward a CGI response: its head as HTTP, its body in chunks."""
        status, headers = 200, list[tuple[str, str]]()
        while line := output.readline().strip():
            key, _, value = line.decode("latin-1").partition(":")
            if key.lower() == "status":
                status = int(value.split()[0])
            elif key.lower() != "content-length":
                headers.append((key, value.strip()))
        self._send(name, status, headers, output)

    def _send(self, name: str, status: int, headers: list[tuple[str, str]], output: io.BufferedReader) -> None:
        chunked = self.request_version != "HTTP/1.0"
        headers = [*headers, ("Transfer-Encoding", "chunked") if chunked else ("Connection", "close")]
        self.send_response(status)
        for key, value in headers:
            self.send_header(key, value)
        self.end_headers()
        for block in self._misbehave(name, output):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(block), block) if chunked else block)
            self.wfile.flush()
        if chunked:
            self.wfile.write(b"0\r\n\r\n")

    def _misbehave(self, name: str, output: io.BufferedReader) -> Iterator[bytes]:
        """Yield the body in blocks, and cut, stall or slow it down as the faults say."""
        traffic = self.server.traffic
        sent = 0
        while True:
            faults = traffic.faults(name)
            if faults.hang_after is not None and sent >= faults.hang_after:
                traffic.hang(self.connection, lambda: traffic.faults(name).hang_after is not None)
                continue
            if faults.cut_after is not None and sent >= faults.cut_after:
                raise Gone
            limits = [_BLOCK]
            limits += [max(1, faults.slow // 20)] if faults.slow is not None else []
            limits += [limit - sent for limit in (faults.hang_after, faults.cut_after) if limit is not None]
            block = output.read1(min(limits))
            if not block:
                return
            yield block
            sent += len(block)
            if faults.slow is not None and traffic.closing.wait(len(block) / faults.slow):
                raise Gone


def _plain_config(repo: Path) -> bytes:
    """The config of a repository that git would open and that says nothing of HTTP; empty for any other."""
    try:
        config = (repo / "config").read_bytes()
        head = (repo / "HEAD").read_bytes()
    except OSError:
        return b""
    whole = head.startswith(b"ref: refs/") and (repo / "objects").is_dir() and (repo / "refs").is_dir()
    return config if whole and b"http" not in config.lower() and b"include" not in config.lower() else b""


def _locate(path: str) -> tuple[str, str]:
    """Split `/acme/widgets.git/info/refs` into `acme/widgets` and `/info/refs`; else ("", path)."""
    for inner in _INNER:
        name, found, rest = path.partition(inner)
        if found:
            name = name.strip("/").removesuffix(".git")
            return (name, found + rest) if ".." not in path.split("/") else ("", path)
    return "", path
