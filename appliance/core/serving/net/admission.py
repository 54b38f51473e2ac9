"""The slots for guests that are being served, shared fairly between peers."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator

from appliance.core.serving.net.acceptor import Busy, Limits
from appliance.core.serving.net.seats import Peer, Seat

LOOK_EVERY = 1.0
"""Seconds between two checks of the guests being served, while all slots are taken."""


class Admission:
    """`max_clients` slots for the guests of all ports together. A guest takes one after its request was read.

    A free slot goes to the waiting peer that holds the fewest. While guests wait, a guest that does not read
    its response is cut off, so that stalled readers cannot block all others.
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
        """Waits for a slot and holds it. Raises Busy if none becomes free within `queue_timeout`."""
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
            self.give_back(seat)

    def give_back(self, seat: Seat) -> None:
        """Releases a guest's slot, if it has one: early, when all that is left is to wait and to send a few bytes."""
        held = self._held.get(seat.peer, {})
        if seat in held:
            del held[seat]
            if not held:
                del self._held[seat.peer]
            self._release()

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
                # The slot was assigned at the same moment.
                self._release()
            else:
                self._leave(seat.peer, future)
            if not isinstance(error, TimeoutError):
                raise
            self.refused += 1
            raise Busy(
                f"{self.limits.max_clients} guests are being served and no slot became free "
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

    def _release(self) -> None:
        while self._queues:
            peer = min(self._queues, key=self._slots_of)
            future = self._queues[peer].popleft()
            if not self._queues[peer]:
                del self._queues[peer]
            if not future.done():
                future.set_result(None)
                return
        self._free += 1

    def _slots_of(self, peer: Peer) -> int:
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
        """Cuts off stalled guests, one for each waiting guest, beginning with the peer that has the most slots."""
        now, wanted = time.monotonic(), self.waiting
        seats = [seat for held in self._held.values() for seat in held]
        wanted -= sum(seat.cut_off for seat in seats)
        if wanted <= 0:
            return
        fewest = min(map(self._slots_of, self._queues), default=0)
        stalled = [seat for seat in seats if not seat.cut_off and seat.is_stalled(now)]
        stalled.sort(key=lambda seat: self._slots_of(seat.peer), reverse=True)
        for seat in stalled[:wanted]:
            if self._slots_of(seat.peer) >= fewest:
                seat.cut("it does not read its response")
