"""The roads between a guest and the mirror, each a small TCP proxy: tunnels that close late or never, and slow ones."""

from __future__ import annotations

import collections
import contextlib
import re
import select
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from urllib.parse import urlsplit

CHUNK = 65536
_RESET = struct.pack("ii", 1, 0)
_HEAD = re.compile(rb"^([A-Z]+) http://[^/ ]+(?=/)")


@dataclass(frozen=True)
class Kind:
    """What a road does to connections.

    `ends` says what becomes of the end of one side: `pass` hands it on as a half-close, `cut` ends both sides at once,
    and `both` tells the other side nothing until it has ended too. `single` lets one connection through at a time:
    others `wait` or are `reset`. A connection that comes less than `gap` seconds after the last one is dropped. `delay`
    is the time that bytes take each way, in seconds, and `rate` the most bytes per second each way.
    """

    ends: str = "pass"
    single: str = ""
    gap: float = 0.0
    delay: float = 0.0
    rate: float = 0.0


NOTICED_WITHIN = 0.5
"""Seconds after which a connection that is over is certainly known to be."""

PLAIN = Kind()
NO_HALF_CLOSE = Kind(ends="cut")
BOTH_CLOSE = Kind(ends="both")
QUEUE = Kind(single="wait")
RESET = Kind(single="reset")
GAP = Kind(gap=1.0)
SLOW = Kind(delay=0.01, rate=10e6)
BOTH_CLOSE_QUEUE = Kind(ends="both", single="wait")

ROADS = {
    "no-half-close": NO_HALF_CLOSE,
    "both-close": BOTH_CLOSE,
    "queue": QUEUE,
    "reset": RESET,
    "gap": GAP,
    "slow": SLOW,
    "both-close-queue": BOTH_CLOSE_QUEUE,
}


@dataclass
class _Gate:
    """What lets connections through, one at a time or not too soon, for one or more ports."""

    free: threading.Condition = field(default_factory=threading.Condition)
    queue: collections.deque[object] = field(default_factory=collections.deque)
    last: float = float("-inf")


class Road:
    """Listens on a free port of 127.0.0.1 and carries connections to `target` as `kind` says. A context manager.

    A road `beside` another is the same tunnel with another port. `came` counts the connections, `turned_away` those
    that were reset or dropped, and `carried` the bytes of both directions.
    """

    def __init__(self, target: tuple[str, int], kind: Kind = PLAIN, beside: Road | None = None) -> None:
        self._target = target
        self._kind = self.kind = kind
        self._gate: _Gate = beside._gate if beside is not None else _Gate()
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._socket.getsockname()[1]
        self.came = 0
        self.turned_away = 0
        self.carried = 0
        self.counting = threading.Lock()
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def __enter__(self) -> Road:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        with self._gate.free:
            self._gate.free.notify_all()
        self._acceptor.join(60)
        self._socket.close()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a connection of the road does not end"

    def _accept(self) -> None:
        while not self._closing.is_set():
            if select.select([self._socket], [], [], 0.05)[0]:
                guest, _ = self._socket.accept()
                self.came += 1
                if not self._lets_in(guest):
                    self.turned_away += 1
                    if self._kind.single == "reset":
                        guest.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                    guest.close()
                    continue
                thread = threading.Thread(target=self._serve, args=(guest,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _lets_in(self, guest: socket.socket) -> bool:
        now, gate = time.monotonic(), self._gate
        with gate.free:
            if self._kind.single == "reset":
                # On a busy machine the road itself may be late to see that the last one is over.
                gate.free.wait_for(lambda: not gate.queue, NOTICED_WITHIN)
            if now - gate.last < self._kind.gap or (self._kind.single == "reset" and gate.queue):
                return False
            gate.last = now
            gate.queue.append(guest)
        return True

    def _serve(self, guest: socket.socket) -> None:
        gate = self._gate
        with guest, contextlib.suppress(OSError):
            try:
                with gate.free:
                    while self._kind.single == "wait" and gate.queue[0] is not guest and not self._closing.is_set():
                        gate.free.wait(0.1)
                # What a handshake takes on a road that is this long.
                self._closing.wait(2 * self._kind.delay)
                first, target = self._begin(guest)
                if target is not None and not self._closing.is_set():
                    with socket.create_connection(target) as mirror:
                        mirror.sendall(first)
                        self._carry(guest, mirror)
            finally:
                with gate.free:
                    gate.queue.remove(guest)
                    gate.free.notify_all()

    def _begin(self, guest: socket.socket) -> tuple[bytes, tuple[str, int] | None]:
        """What the mirror gets first, and where it is; None if this connection goes nowhere."""
        return b"", self._target

    def _upwards(self, data: bytes) -> bytes:
        """What a proxy makes of bytes from the guest."""
        return data

    def _carry(self, guest: socket.socket, mirror: socket.socket) -> None:
        ended = threading.Event()
        sides = [_Side(self, guest, mirror, self._upwards), _Side(self, mirror, guest, bytes)]
        threads = [threading.Thread(target=side.carry, args=(self._kind, ended), daemon=True) for side in sides]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    @property
    def closing(self) -> bool:
        """Whether the road is being taken down."""
        return self._closing.is_set()


class _Side:
    """One direction of a connection."""

    def __init__(self, road: Road, source: socket.socket, sink: socket.socket, change: object) -> None:
        self._road = road
        self._source = source
        self._sink = sink
        self._change = change

    def carry(self, kind: Kind, ended: threading.Event) -> None:
        """Carries bytes until this side has ended, or the road or, on one that cuts, the other side has."""
        pending: collections.deque[tuple[float, bytes]] = collections.deque()
        held, free_at, open_ = 0, 0.0, True
        while not self._road.closing and not (kind.ends == "cut" and ended.is_set()):
            now = time.monotonic()
            while pending and pending[0][0] <= now:
                _, data = pending.popleft()
                held -= len(data)
                self._send(data, ended)
            if not open_ and not pending:
                break
            wait = min(0.05, max(0.0, pending[0][0] - time.monotonic())) if pending else 0.05
            # A road holds no more than what is on its way, so whoever sends faster than its rate has to wait.
            if not open_ or held > max(CHUNK * 4, kind.rate * (2 * kind.delay + 0.02)):
                time.sleep(wait)
                continue
            if not select.select([self._source], [], [], wait)[0]:
                continue
            try:
                data = self._source.recv(CHUNK)
            except OSError:
                data = b""
            if not data:
                open_ = False
                continue
            if callable(self._change):
                data = self._change(data)
            now = time.monotonic()
            free_at = max(free_at, now) + (len(data) / kind.rate if kind.rate else 0.0)
            held += len(data)
            pending.append((free_at + kind.delay, data))
        if kind.ends == "pass":
            with contextlib.suppress(OSError):
                self._sink.shutdown(socket.SHUT_WR)
        elif kind.ends == "cut":
            ended.set()

    def _send(self, data: bytes, ended: threading.Event) -> None:
        view = memoryview(data)
        self._sink.settimeout(0.5)
        while view and not self._road.closing:
            try:
                sent = self._sink.send(view)
            except TimeoutError:
                continue
            except OSError:
                # Whoever it is for has gone. A tunnel does not tell the other end.
                return
            view = view[sent:]
            with self._road.counting:
                self._road.carried += sent


class HttpProxy(Road):
    """A proxy for HTTP, to be named in `http_proxy`. It goes wherever it is asked to.

    It takes CONNECT and, unless `tunnels_only`, requests for `http://` addresses, handed on with the path alone,
    or with the whole address if it is `lazy`, as RFC 9112 allows (section 3.2.2).
    """

    def __init__(self, *, tunnels_only: bool = False, lazy: bool = False) -> None:
        self._tunnels_only = tunnels_only
        self._lazy = lazy
        self.methods: list[str] = []
        super().__init__(("127.0.0.1", 0))

    def __enter__(self) -> HttpProxy:
        return self

    @property
    def url(self) -> str:
        """The value of `http_proxy`."""
        return f"http://127.0.0.1:{self.port}"

    def _begin(self, guest: socket.socket) -> tuple[bytes, tuple[str, int] | None]:
        data = b""
        while b"\r\n\r\n" not in data and not self._closing.is_set():
            if select.select([guest], [], [], 0.05)[0]:
                more = guest.recv(CHUNK)
                if not more:
                    return b"", None
                data += more
        method, target = data.decode("latin-1").split(" ")[:2]
        self.methods.append(method)
        if method == "CONNECT":
            host, _, port = target.rpartition(":")
            guest.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
            return data.partition(b"\r\n\r\n")[2], (host, int(port))
        if self._tunnels_only:
            guest.sendall(b"HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return b"", None
        parts = urlsplit(target)
        assert parts.hostname and parts.port
        return self._upwards(data), (parts.hostname, parts.port)

    def _upwards(self, data: bytes) -> bytes:
        return data if self._lazy else _HEAD.sub(rb"\1 ", data, count=1)
