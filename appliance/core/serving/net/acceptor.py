"""Accepts connections, limits their number, and ends them when `serve` stops: the same for every port."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from appliance.core.config.settings import ServeConfig
from appliance.core.serving.net.idle import end_tasks
from appliance.core.serving.net.seats import Peer, Seat, Seats
from appliance.core.serving.net.sockets import client_of

log = logging.getLogger(__name__)

QUIET = 3.0
"""Seconds without a byte after which a connection that nobody is served on is ended when `serve` stops."""
A_YEAR = 365 * 86400.0
"""Seconds, for what is not limited."""


@dataclass(frozen=True)
class Limits:
    """The limits for guests, in connections and seconds."""

    max_clients: int
    queue_timeout: float
    request_timeout: float
    idle_timeout: float
    total_timeout: float

    @classmethod
    def of(cls, config: ServeConfig) -> Limits:
        """The limits that `[serve]` sets."""
        return cls(
            config.max_clients,
            config.queue_timeout,
            config.request_timeout,
            config.idle_timeout,
            config.total_timeout,
        )

    @property
    def max_connections(self) -> int:
        """The most connections at once, including those that wait for a slot."""
        return self.max_clients * 4 + 64


class Busy(Exception):
    """The guest cannot be served now. The text is sent to it."""


EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN, errno.ENOSPC})
"""The errors of a system that has no descriptor, memory, process or disk space left. The guest is not at fault."""
EXHAUSTED_TEXT = "the mirror has no resources left for another guest; try again later"


Handle = Callable[[Seat], Awaitable[None]]
"""Serves one connection to its end."""


@dataclass(frozen=True)
class Road:
    """The socket of one known guest: its name, and its id."""

    guest: str
    guest_id: int

    def seat(self, connection: socket.socket) -> Seat:
        """The seat of a connection that came by it. The guest is a peer of its own."""
        return Seat(connection, f"unix:{self.guest}", 0, Peer(f"guest {self.guest}"), self.guest_id)


class Acceptor:
    """Accepts connections on the sockets of one port, and runs `handle` for each one that `seats` has room for."""

    def __init__(self, name: str, handle: Handle, seats: Seats) -> None:
        self._name = name
        self._handle = handle
        self._seats = seats
        self._connections: dict[asyncio.Task[None], Seat] = {}
        self._listening: dict[socket.socket, Road | None] = {}

    def __len__(self) -> int:
        """The current connections, including those that wait."""
        return len(self._connections)

    def start(self, sockets: list[socket.socket]) -> None:
        """Starts accepting on `sockets`, which must be listening and non-blocking."""
        for listening in sockets:
            self.add(listening)

    def add(self, listening: socket.socket, road: Road | None = None) -> None:
        """Also accepts on this socket. With a `road`, who comes by it is known, whatever its address."""
        self._listening[listening] = road
        self._listen(listening)

    def remove(self, listening: socket.socket) -> None:
        """Stops accepting on a socket and closes it. Connections that came by it go on; those that wait are refused.

        It is shut down before, because the service manager may hold another descriptor of it.
        """
        if listening in self._listening:
            del self._listening[listening]
            asyncio.get_running_loop().remove_reader(listening)
            with contextlib.suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)
            listening.close()

    async def stop(self, drain: float) -> None:
        """Stops accepting, lets open connections finish for up to `drain` seconds, then cancels them.

        Those on which nothing is asked for are ended before, so that a guest that went away keeps no restart waiting.
        """
        loop = asyncio.get_running_loop()
        for listening in self._listening:
            loop.remove_reader(listening)
            listening.close()
        self._listening = {}
        if self._connections and drain:
            log.info("draining %d %s connections for up to %gs", len(self._connections), self._name, drain)
            idle = asyncio.create_task(self._end_idle())
            await asyncio.wait(self._connections, timeout=drain)
            await end_tasks(idle)
        for connection in list(self._connections):
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _end_idle(self) -> None:
        """Ends connections that are not served, and on which no byte has moved for QUIET seconds.

        Of one that is not TCP nobody knows whether bytes move, and a request may be on its way.
        """
        before: dict[Seat, int | None] = {}
        while True:
            for seat in self._connections.values():
                moved = seat.moved()
                if seat.is_idle and moved is not None and before.get(seat) == moved:
                    seat.cut("nothing was asked for on it, and serve stops")
                before[seat] = moved
            await asyncio.sleep(QUIET)

    def _listen(self, listening: socket.socket) -> None:
        # Does not use sock_accept: if that is cancelled at the moment a guest connects, it takes the connection from
        # the backlog and drops it (InvalidStateError in its callback), so guests that connect during a restart are
        # reset.
        asyncio.get_running_loop().add_reader(listening, self._accept, listening)

    def _accept(self, listening: socket.socket) -> None:
        """Takes one connection from the backlog. The loop calls this again as long as there are more."""
        try:
            connection, address = listening.accept()
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            if error.errno not in (errno.ECONNABORTED, errno.EPROTO):
                # No descriptors or memory are left: guests wait in the backlog until some are free again.
                log.error("cannot accept a connection: %s", error)
                loop = asyncio.get_running_loop()
                loop.remove_reader(listening)
                loop.call_later(0.1, self._resume, listening)
            return
        connection.setblocking(False)
        road = self._listening[listening]
        seat = Seat(connection, *client_of(listening, address)) if road is None else road.seat(connection)
        if not self._seats.take(seat):
            connection.close()
            return
        task = asyncio.create_task(self._serve(seat))
        self._connections[task] = seat
        task.add_done_callback(self._connections.pop)

    def _resume(self, listening: socket.socket) -> None:
        if listening in self._listening:
            self._listen(listening)

    async def _serve(self, seat: Seat) -> None:
        with seat.socket as connection:
            with contextlib.suppress(OSError):
                # Without this, a tiny request costs 40 to 100 ms, because Nagle's algorithm waits for a delayed ACK.
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                await self._handle(seat)
            except Exception:
                log.exception("serving %s failed", seat.client)
            finally:
                self._seats.leave(seat)
