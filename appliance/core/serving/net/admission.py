"""Places for guests that are being served, shared fairly between peers."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator

from appliance.core.serving.net.acceptor import Busy, Limits
from appliance.core.serving.net.seats import Peer, Seat

LOOK_EVERY = 1.0
"""Seconds between two looks at who is served, while all places are taken."""


class Admission:
    """Places for `max_clients` guests on all ports together. A guest takes one once it has asked for something.

    One that comes free goes to the peer that has fewest. Who is served and does not take it makes way for whoever
    waits, so that stalled readers cannot keep all others out.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._held: dict[Peer, dict[Seat, None]] = {}
        self._queues: dict[Peer, deque[asyncio.Future[None]]] = {}
        self._free = limits.max_clients
        self._watch: asyncio.TimerHandle | None = None
        self.waiting = 0
        self.served = 0
        self.refused = 0

    @contextlib.asynccontextmanager
    async def place(self, seat: Seat) -> AsyncIterator[None]:
        """Waits its turn. Raises Busy."""
        if self._free:
            self._free -= 1
        else:
            await self._wait(seat)
        self._held.setdefault(seat.peer, {})[seat] = None
        seat.begin()
        if not self._free and self._watch is None:
            self._watch = asyncio.get_running_loop().call_later(LOOK_EVERY, self._look)
        try:
            yield
            self.served += 1
        finally:
            seat.end()
            held = self._held[seat.peer]
            del held[seat]
            if not held:
                del self._held[seat.peer]
            self._give_back()

    async def _wait(self, seat: Seat) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue = self._queues.setdefault(seat.peer, deque())
        queue.append(future)
        self.waiting += 1
        seat.waiting = True
        self._relieve()
        try:
            async with asyncio.timeout(self.limits.queue_timeout):
                await future
        except BaseException as error:
            if future.done() and not future.cancelled():
                # It was given in the very moment.
                self._give_back()
            else:
                self._leave(seat.peer, future)
            if not isinstance(error, TimeoutError):
                raise
            self.refused += 1
            raise Busy(
                f"{self.limits.max_clients} guests are being served and no place came free "
                f"in {self.limits.queue_timeout:g}s; try again"
            ) from None
        finally:
            self.waiting -= 1
            seat.waiting = False

    def _leave(self, peer: Peer, future: asyncio.Future[None]) -> None:
        queue = self._queues.get(peer)
        if queue is not None and future in queue:
            queue.remove(future)
            if not queue:
                del self._queues[peer]

    def _give_back(self) -> None:
        while self._queues:
            peer = min(self._queues, key=self._places_of)
            future = self._queues[peer].popleft()
            if not self._queues[peer]:
                del self._queues[peer]
            if not future.done():
                future.set_result(None)
                return
        self._free += 1

    def _places_of(self, peer: Peer) -> int:
        return len(self._held.get(peer, ()))

    def _look(self) -> None:
        now = time.monotonic()
        for seats in self._held.values():
            for seat in seats:
                seat.look(now)
        self._relieve()
        full = not self._free
        self._watch = asyncio.get_running_loop().call_later(LOOK_EVERY, self._look) if full else None

    def _relieve(self) -> None:
        """Has stalled guests make way, one for each that waits: of the peer with most places first."""
        now, wanted = time.monotonic(), self.waiting
        seats = [seat for of_peer in self._held.values() for seat in of_peer]
        wanted -= sum(seat.cut_off for seat in seats)
        if wanted <= 0:
            return
        fewest = min(map(self._places_of, self._queues), default=0)
        stalled = [seat for seat in seats if not seat.cut_off and seat.is_stalled(now)]
        stalled.sort(key=lambda seat: self._places_of(seat.peer), reverse=True)
        for seat in stalled[:wanted]:
            if self._places_of(seat.peer) >= fewest:
                seat.cut("it takes nothing of what it asked for")
