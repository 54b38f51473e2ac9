"""Accepting connections, how many at once, and how they end when serve stops: the same for every port."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from appliance.core.config.settings import ServeConfig
from appliance.core.serving.net.seats import Seat, Seats

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """What guests may take, in seconds and connections."""

    max_clients: int
    queue_timeout: float
    request_timeout: float
    idle_timeout: float
    total_timeout: float

    @classmethod
    def of(cls, config: ServeConfig) -> Limits:
        """Those of `[serve]`."""
        return cls(
            config.max_clients,
            config.queue_timeout,
            config.request_timeout,
            config.idle_timeout,
            config.total_timeout,
        )

    @property
    def max_connections(self) -> int:
        """Connections at once, those that wait their turn included."""
        return self.max_clients * 4 + 64


class Busy(Exception):
    """There is no place for this guest; the text is for it."""


EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN, errno.ENOSPC})
"""What the system says when it has no descriptor, memory, process or room left: the guest did nothing wrong."""
EXHAUSTED_TEXT = "the mirror has no resources left for one more guest; try again later"


Handle = Callable[[Seat], Awaitable[None]]
"""Serves one connection."""


class Acceptor:
    """Accepts on the listening sockets of one port and runs `handle` for each connection that finds room in `seats`."""

    def __init__(self, name: str, handle: Handle, seats: Seats) -> None:
        self._name = name
        self._handle = handle
        self._seats = seats
        self._connections: set[asyncio.Task[None]] = set()
        self._listening: list[socket.socket] = []

    def __len__(self) -> int:
        """Connections at this moment, waiting ones included."""
        return len(self._connections)

    def start(self, sockets: list[socket.socket]) -> None:
        """Accepts on listening, non-blocking sockets."""
        self._listening = list(sockets)
        for each in sockets:
            self._listen(each)

    async def stop(self, drain: float) -> None:
        """Stops accepting, lets what runs finish for `drain` seconds, then ends it."""
        loop = asyncio.get_running_loop()
        for each in self._listening:
            loop.remove_reader(each)
            each.close()
        self._listening = []
        if self._connections and drain:
            log.info("draining %d %s connections for up to %gs", len(self._connections), self._name, drain)
            await asyncio.wait(self._connections, timeout=drain)
        for connection in list(self._connections):
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _listen(self, listening: socket.socket) -> None:
        # Not sock_accept: cancelled in the moment a guest came, it takes the guest from the backlog and drops it
        # (InvalidStateError in its callback), and whoever comes while systemd restarts us is reset.
        asyncio.get_running_loop().add_reader(listening, self._accept, listening)

    def _accept(self, listening: socket.socket) -> None:
        """Takes one guest from the backlog; the loop calls it again as long as there are more."""
        try:
            connection, address = listening.accept()
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            if error.errno not in (errno.ECONNABORTED, errno.EPROTO):
                # Out of descriptors or memory: guests wait in the backlog until some are given back.
                log.error("cannot accept a guest: %s", error)
                loop = asyncio.get_running_loop()
                loop.remove_reader(listening)
                loop.call_later(0.1, self._resume, listening)
            return
        connection.setblocking(False)
        seat = _seat_of(connection, address)
        if not self._seats.take(seat):
            connection.close()
            return
        task = asyncio.create_task(self._serve(seat))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    def _resume(self, listening: socket.socket) -> None:
        if listening in self._listening:
            self._listen(listening)

    async def _serve(self, seat: Seat) -> None:
        with seat.socket as connection:
            with contextlib.suppress(OSError):
                # Without it a tiny exchange costs 40 to 100 ms (Nagle against delayed ACK).
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                await self._handle(seat)
            except Exception:
                log.exception("serving %s failed", seat.client)
            finally:
                self._seats.leave(seat)


def _seat_of(connection: socket.socket, address: object) -> Seat:
    if isinstance(address, tuple):
        # IPv4 also when it came over a dual-stack socket.
        return Seat(connection, str(address[0]).removeprefix("::ffff:"), address[1])
    return Seat(connection, "unix", 0)
