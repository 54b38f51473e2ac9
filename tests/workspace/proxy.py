"""A TCP proxy in front of one port of the mirror, which breaks what goes through it on demand."""

from __future__ import annotations

import contextlib
import re
import select
import socket
import struct
import threading
from dataclasses import dataclass
from types import TracebackType

_RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Fault:
    """What happens to a connection whose first bytes hold `only`, after `after` bytes of the answer went through.

    `refuse` and `hang` know nothing of bytes: the one closes at once, the other never says a word. `status` answers
    with an HTTP status. `end` closes in good order and `reset` with a reset, `stall` keeps the connection and says no
    more, and `dribble` goes on so slowly that the end never comes, yet gives whoever reads no reason to leave.
    `shorten` sends an answer whose length is `after`, as a broken cache does: HTTP finds nothing wrong with it.
    """

    kind: str
    only: bytes = b""
    after: int = 0
    status: int = 0


class Proxy:
    """Listens on a free port of 127.0.0.1 and carries bytes to `target`. A context manager."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._socket.getsockname()[1]
        self.fault: Fault | None = None
        self.requests: list[bytes] = []
        self.stalled = False
        """Whether a connection has come to the point where it hangs or stalls."""
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._acceptor.join(60)
        self._socket.close()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a connection of the proxy does not end"

    def _accept(self) -> None:
        while not self._closing.is_set():
            if select.select([self._socket], [], [], 0.02)[0]:
                connection, _ = self._socket.accept()
                thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, guest: socket.socket) -> None:
        with guest, contextlib.suppress(OSError):
            fault = self.fault
            if fault and fault.kind == "refuse":
                guest.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                return
            first = self._read(guest)
            self.requests.append(first)
            if fault and fault.only not in first:
                fault = None
            if fault and fault.kind == "hang":
                self.stalled = True
                self._closing.wait()
                return
            if fault and fault.kind == "status":
                text = f"HTTP/1.1 {fault.status} Broken\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                guest.sendall(text.encode())
                return
            with socket.create_connection(self._target) as mirror:
                mirror.sendall(first)
                self._carry(guest, mirror, fault)

    def _carry(self, guest: socket.socket, mirror: socket.socket, fault: Fault | None) -> None:
        sent = 0
        open_sides = {guest, mirror}
        while open_sides and not self._closing.is_set():
            for side in select.select(list(open_sides), [], [], 0.05)[0]:
                data = side.recv(65536)
                if side is guest:
                    if data:
                        mirror.sendall(data)
                    else:
                        open_sides.discard(guest)
                        mirror.shutdown(socket.SHUT_WR)
                    continue
                if not data:
                    return
                if fault is None:
                    guest.sendall(data)
                    continue
                if fault.kind == "dribble" and sent >= fault.after:
                    self._dribble(guest, data)
                    continue
                if fault.kind == "shorten":
                    data = re.sub(rb"(?i)(content-length: )\d+", b"\\g<1>%d" % fault.after, data, count=1)
                    head = data.find(b"\r\n\r\n") + 4 if sent == 0 else 0
                    limit = fault.after + (head if sent == 0 else self._head)
                    self._head = head if sent == 0 else self._head
                else:
                    limit = fault.after
                guest.sendall(data[: max(0, limit - sent)])
                sent += len(data)
                if sent >= limit:
                    if fault.kind == "dribble":
                        self._dribble(guest, data[len(data) - (sent - limit) :])
                        continue
                    if fault.kind == "stall":
                        self.stalled = True
                        self._closing.wait()
                    if fault.kind == "reset":
                        guest.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                    return

    def _dribble(self, guest: socket.socket, data: bytes) -> None:
        self.stalled = True
        for at in range(0, len(data), 64):
            if self._closing.wait(0.1):
                return
            guest.sendall(data[at : at + 64])

    _head = 0

    def _read(self, guest: socket.socket) -> bytes:
        data = b""
        # git may send the length of its request ahead of the rest.
        while len(data) <= 4 and not self._closing.is_set():
            if select.select([guest], [], [], 0.02)[0]:
                more = guest.recv(65536)
                if not more:
                    break
                data += more
        return data
