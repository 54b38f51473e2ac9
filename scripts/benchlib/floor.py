"""The floor: a server that only replays responses. No server can make a client faster than this one.

    python floor.py GIT_PORT HTTP_PORT

Serves git:// (protocol v2) and HTTP on two free ports, which it prints. At the first occurrence of a request it fetches
the response from the server on the given ports of the loopback, and keeps it in memory. From then on it responds by
sendfile, in one loop, and only looks the request up. `GET /recorded` returns how many responses it has, so that the
benchmark can check that none was recorded during a measurement.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import selectors
import socket
import sys
from collections import deque
from dataclasses import dataclass

FLUSH = b"0000"
RECEIVE = 2**18
SEND = 2**20
TIMEOUT = 120.0
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_PASSED_ON = ("content-type", "content-encoding", "git-protocol", "accept", "accept-encoding")


@dataclass(frozen=True)
class Recorded:
    """One response: some leading bytes, and the rest in a file in memory."""

    head: bytes
    file: int
    size: int


def keep(head: bytes, body: bytes) -> Recorded:
    """Stores a response in a file in memory, so that sendfile can send it."""
    file = os.memfd_create("answer", os.MFD_CLOEXEC)
    view = memoryview(body)
    while view:
        view = view[os.write(file, view) :]
    return Recorded(head, file, len(body))


class Replay:
    """The responses by request, and the server from which missing ones are fetched."""

    def __init__(self, git_port: int, http_port: int) -> None:
        self._git_port = git_port
        self._http_port = http_port
        self.known: dict[tuple[bytes, ...], Recorded] = {}

    def greeting(self, first: bytes) -> Recorded:
        """Returns the response of a git:// server to the first packet of a connection."""
        key = (b"greeting", _without_host(first))
        if key not in self.known:
            self.known[key] = keep(b"", self._ask_git(first, b""))
        return self.known[key]

    def command(self, first: bytes, request: bytes) -> Recorded | None:
        """Returns the response to one command, or None while the request is incomplete."""
        key = (_without_host(first), _without_client(request))
        found = self.known.get(key)
        if found is None and _is_whole(request):
            greeting = self.greeting(first)
            answer = self._ask_git(first, request)
            found = self.known[key] = keep(b"", answer[greeting.size :])
        return found

    def exchange(self, head: bytes, body: bytes) -> Recorded:
        """Returns the response to one HTTP request."""
        line, _, rest = head.partition(b"\r\n")
        fields = {
            name.strip().lower(): value.strip()
            for name, _, value in (each.partition(b":") for each in rest.split(b"\r\n"))
        }
        key = (line, fields.get(b"git-protocol", b""), _without_client(body))
        if line.startswith(b"GET /recorded "):
            text = b"%d\n" % len(self.known)
            return keep(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(text), text)
        if key not in self.known:
            self.known[key] = self._ask_http(
                line, {name.decode(): value.decode() for name, value in fields.items()}, body
            )
        return self.known[key]

    def _ask_git(self, first: bytes, request: bytes) -> bytes:
        """Sends one request on a connection of its own, with a flush to end it, and returns the whole response."""
        with socket.create_connection(("127.0.0.1", self._git_port), TIMEOUT) as connection:
            connection.sendall(first + request + FLUSH)
            connection.shutdown(socket.SHUT_WR)
            parts = []
            while data := connection.recv(RECEIVE):
                parts.append(data)
        return b"".join(parts)

    def _ask_http(self, line: bytes, fields: dict[str, str], body: bytes) -> Recorded:
        method, target, _ = line.decode().split(" ", 2)
        connection = http.client.HTTPConnection("127.0.0.1", self._http_port, timeout=TIMEOUT)
        headers = {name: fields[name] for name in _PASSED_ON if name in fields}
        connection.request(method, target, body or None, headers)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        head = (
            f"HTTP/1.1 {answer.status} {answer.reason}\r\nContent-Type: {answer.headers['content-type']}\r\n"
            f"Cache-Control: no-cache\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        return keep(head.encode(), data)


class Guest:
    """One connection, with the bytes that are received but not yet parsed, and the responses that are not yet sent."""

    def __init__(self, connection: socket.socket, replay: Replay, *, speaks_http: bool) -> None:
        self.connection = connection
        self._replay = replay
        self._speaks_http = speaks_http
        self._first = b""
        self._buffer = bytearray()
        self._waiting: deque[tuple[Recorded, int]] = deque()
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def receive(self) -> bool:
        """Reads once and responds to every complete request. Returns whether the connection stays open."""
        data = self.connection.recv(RECEIVE)
        self._buffer += data
        while self._buffer:
            answer = self._http_answer() if self._speaks_http else self._git_answer()
            if answer is None:
                break
            self._waiting.append((answer, -len(answer.head)))
        if data and not self._waiting:
            # git writes a request packet by packet, and Nagle's algorithm holds the second one back until the first is
            # acknowledged. Without this, every request over git:// costs the 40 ms of a delayed acknowledgement.
            self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        return bool(data) and self.send()

    def send(self) -> bool:
        """Sends as much as possible without blocking. Returns whether the connection stays open."""
        while self._waiting:
            answer, at = self._waiting[0]
            try:
                if at < 0:
                    at += self.connection.send(answer.head[at:], socket.MSG_MORE if answer.size else 0)
                while 0 <= at < answer.size:
                    at += os.sendfile(self.connection.fileno(), answer.file, at, min(SEND, answer.size - at))
            except BlockingIOError:
                self._waiting[0] = (answer, at)
                return True
            if at >= 0:
                self._waiting.popleft()
            else:
                self._waiting[0] = (answer, at)
        # A lone flush from a git:// client means that it has no more requests.
        return self._speaks_http or self._buffer != FLUSH

    @property
    def busy(self) -> bool:
        """Whether a response is not completely sent yet."""
        return bool(self._waiting)

    def _git_answer(self) -> Recorded | None:
        if not self._first:
            size = int(self._buffer[:4], 16) if len(self._buffer) >= 4 else 0
            if not 4 < size <= len(self._buffer):
                return None
            self._first = bytes(self._buffer[:size])
            del self._buffer[:size]
            return self._replay.greeting(self._first)
        # Checks only the end, not each packet: a request cut off inside an object id after 0000 is neither known nor
        # complete.
        if self._buffer == FLUSH or not self._buffer.endswith(FLUSH):
            return None
        answer = self._replay.command(self._first, bytes(self._buffer))
        if answer is not None:
            self._buffer.clear()
        return answer

    def _http_answer(self) -> Recorded | None:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return None
        head = bytes(self._buffer[:end])
        found = _LENGTH.search(head)
        size = end + 4 + (int(found[1]) if found else 0)
        if len(self._buffer) < size:
            return None
        body = bytes(self._buffer[end + 4 : size])
        del self._buffer[:size]
        return self._replay.exchange(head, body)


def serve(replay: Replay) -> None:
    """Serves until it is killed."""
    poll = selectors.DefaultSelector()
    listening = [socket.create_server(("127.0.0.1", 0), backlog=1024) for _ in range(2)]
    for each in listening:
        each.setblocking(False)
        poll.register(each, selectors.EVENT_READ)
    print(*(each.getsockname()[1] for each in listening), flush=True)
    while True:
        for key, events in poll.select():
            if key.data is None:
                accepting = key.fileobj
                assert isinstance(accepting, socket.socket)
                with contextlib.suppress(BlockingIOError):
                    connection, _ = accepting.accept()
                    guest = Guest(connection, replay, speaks_http=accepting is listening[1])
                    poll.register(connection, selectors.EVENT_READ, guest)
                continue
            guest = key.data
            try:
                stays_open = guest.send() if events & selectors.EVENT_WRITE else guest.receive()
            except OSError:
                stays_open = False
            if not stays_open:
                poll.unregister(guest.connection)
                guest.connection.close()
                continue
            wanted = selectors.EVENT_WRITE if guest.busy else selectors.EVENT_READ
            if key.events != wanted:
                poll.modify(guest.connection, wanted, guest)


def _without_host(first: bytes) -> bytes:
    """Returns a git:// request without the host, because the host contains the port of the server."""
    service, _, rest = first[4:].partition(b"\0")
    return service + b"\0".join(part for part in rest.split(b"\0") if part.startswith(b"version="))


def _without_client(request: bytes) -> bytes:
    """Returns a request without `agent=` and `session-id=`, which do not affect the response. Parses only its head."""
    stripped, at = b"", 0
    if not request.startswith(b"00"):
        # HTTP bodies over a KiB are compressed, and the same client compresses the same request to the same bytes.
        return request
    while (size := int(request[at : at + 4], 16)) >= 4:
        line = request[at : at + size]
        stripped += b"" if line[4:].startswith((b"agent=", b"session-id=")) else line
        at += size
        if at >= len(request):
            break
    return stripped + request[at:]


def _is_whole(request: bytes) -> bool:
    at = 0
    while at + 4 <= len(request):
        size = int(request[at : at + 4], 16)
        if size == 0:
            return at + 4 == len(request)
        at += max(size, 4)
    return False


if __name__ == "__main__":
    serve(Replay(int(sys.argv[1]), int(sys.argv[2])))
