"""git:// on a real socket for tests of what goes over it: a port that records, and a tap between git and its daemon."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from appliance.core.serving.wire.requests import PushRequest
from tests.support.gitutil import clean_env, git_result, wait_until
from tests.support.pkt import FLUSH, pkt
from tests.support.upstream import GitDaemonUpstream


@contextlib.contextmanager
def listening(handle: Callable[[socket.socket], None]) -> Iterator[int]:
    """A port of 127.0.0.1 on which each connection goes to `handle`, one after the other."""
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(60)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                with connection, contextlib.suppress(OSError):
                    connection.settimeout(60)
                    handle(connection)

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield server.getsockname()[1]
    finally:
        # shutdown() wakes the thread up; close() alone would leave it in accept.
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join(60)
        assert not thread.is_alive()


def read_first_packet(connection: socket.socket) -> bytes:
    """The payload of the first packet."""
    data = b""
    while len(data) < 4 or len(data) < int(data[:4], 16):
        more = connection.recv(1 if len(data) < 4 else int(data[:4], 16) - len(data))
        if not more:
            break
        data += more
    return data[4:]


def at(repo: Path) -> dict[str, str]:
    """An environment in which git works on `repo` wherever it is started."""
    return clean_env(repo.parent, GIT_DIR=str(repo))


@dataclass
class Recorded:
    """The bytes of one push both ways, after the first packet."""

    up: bytes = b""
    down: bytes = b""

    @property
    def advertised(self) -> bytes:
        """What receive-pack said before it heard anything."""
        return self.down[: self.down.index(FLUSH) + 4]

    @property
    def answer(self) -> bytes:
        """What it said to the push."""
        return self.down[len(self.advertised) :]


@dataclass
class Tap:
    """A git:// port that passes everything on to a real git daemon and writes down what went over."""

    upstream: GitDaemonUpstream
    strip: tuple[bytes, ...] = ()
    pushes: list[Recorded] = field(default_factory=list)

    def handle(self, guest: socket.socket) -> None:
        """One connection."""
        recorded = Recorded()
        first = read_first_packet(guest)
        with socket.create_connection(("127.0.0.1", self.upstream.port), timeout=60) as daemon:
            daemon.sendall(pkt(first))
            while True:
                ready, _, _ = select.select([guest, daemon], [], [], 20)
                if guest in ready:
                    data = guest.recv(65536)
                    recorded.up += data
                    daemon.sendall(data)
                if daemon in ready:
                    data = daemon.recv(65536)
                    if not data:
                        break
                    recorded.down += data
                    guest.sendall(self._stripped(data))
        self.pushes.append(recorded)

    def _stripped(self, data: bytes) -> bytes:
        # Only the first packet carries capabilities; a name is replaced by one as long, so that lengths hold.
        for name in self.strip:
            data = data.replace(b" " + name + b" ", b" " + b"x" * len(name) + b" ")
        return data


def recorded_push(hub: GitDaemonUpstream, work: Path, *refspecs: str, strip: tuple[bytes, ...] = ()) -> Recorded:
    """What goes over the wire when git in `work` pushes to the daemon."""
    tap = Tap(hub, strip)
    with listening(tap.handle) as port:
        git_result("push", f"git://127.0.0.1:{port}/acme/widgets", *refspecs, cwd=work)
        wait_until(lambda: tap.pushes, message="the push is over")
    return tap.pushes[0]


def fed(data: bytes, size: int) -> PushRequest:
    """A PushRequest that got `data` in pieces of `size`, up to where it wanted no more."""
    request = PushRequest()
    at = 0
    while at < len(data) and not request.done:
        request.feed(data[at : at + size])
        at += size
    return request
