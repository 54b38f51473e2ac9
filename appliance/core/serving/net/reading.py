"""What the requests of all guests take of the memory, while they are read and answered: one budget for all of them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from types import TracebackType

from appliance.core.serving.net.acceptor import Busy
from appliance.core.serving.net.seats import Peer

SMALL = 32768
"""Bytes of each request that count for nothing: what most guests say is read whatever others do."""
WAIT = 10.0
"""Seconds that a guest waits for memory before it is told to come back."""
POLL = 0.2
READING_GRACE = 5.0
"""Seconds that a large request may take to come in before its guest makes way for others."""
ANSWERING_GRACE = 30.0
"""Seconds that one may take to be answered before it does."""


class Charge:
    """What one request takes, in bytes as it is unpacked and parsed. Guests that sent the same one share it."""

    def __init__(self) -> None:
        self.size = 0
        self.users = 1


class Budget:
    """MOST bytes for the requests of all guests, whatever protocol they are of."""

    MOST = 128 * 2**20

    def __init__(self) -> None:
        self.used = 0
        self._shares: set[Share] = set()
        self._waiting: set[asyncio.Future[None]] = set()

    def share(self, peer: Peer) -> Share:
        """A context for one request, from its first byte to the end of its answer."""
        return Share(self, peer)

    def enter(self, share: Share) -> None:
        """A share takes more than nothing from here on."""
        self._shares.add(share)

    def leave(self, share: Share) -> None:
        """It does not any more."""
        self._shares.discard(share)

    def add(self, size: int) -> None:
        """Counts bytes that are used, or are not any more."""
        self.used += size
        if size < 0:
            for future in self._waiting:
                _resolve(future)

    async def make_room(self, share: Share, more: int) -> None:
        """Waits until so many bytes fit; whoever holds much of it for long makes way. Raises Busy.

        A request that is alone is never in nobody's way: its own bounds are below any that memory has.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + WAIT
        while self.used + more > self.MOST and self.used > share.charge.size:
            self._turn_out(share)
            left = until - loop.time()
            if left <= 0:
                raise Busy("too many large requests are being read at once; try again")
            future: asyncio.Future[None] = loop.create_future()
            self._waiting.add(future)
            timer = loop.call_later(min(left, POLL), _resolve, future)
            try:
                await future
            finally:
                timer.cancel()
                self._waiting.discard(future)

    def _turn_out(self, share: Share) -> None:
        """Ends the request that is in the way most: of the peer that holds most, the one that came slowest."""
        held: Counter[Peer] = Counter()
        for each in self._shares:
            held[each.peer] += round(each.weight)
        if any(each.is_turned_out for each in self._shares):
            return
        now = time.monotonic()
        late = [
            each
            for each in self._shares
            if each is not share and each.is_late(now) and held[each.peer] >= held[share.peer]
        ]
        if late:
            max(late, key=lambda each: (held[each.peer], each.slowness(now))).turn_out()


class Share:
    """One request's part of the budget. A context manager of the task that reads and answers it.

    Raises Busy out of the block when it has to make way.
    """

    def __init__(self, budget: Budget, peer: Peer) -> None:
        self.peer = peer
        self.charge = Charge()
        self._budget = budget
        self._total = 0
        self._since = 0.0
        self._grace = READING_GRACE
        self.is_turned_out = False
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0

    def __enter__(self) -> Share:
        self._task = asyncio.current_task()
        self._cancelling = self._task.cancelling() if self._task else 0
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._drop()
        if self.is_turned_out and self._task is not None:
            others = self._task.uncancel() > self._cancelling
            if kind is asyncio.CancelledError and not others:
                raise Busy("this large request took too long while others wait; try again") from None

    async def grow(self, size: int) -> None:
        """So many bytes more are held. Waits for them. Raises Busy."""
        self._total += size
        more = self._total - SMALL - self.charge.size
        if more <= 0:
            return
        if not self.charge.size:
            self._since = time.monotonic()
            self._budget.enter(self)
        if self._budget.used + more > self._budget.MOST:
            await self._budget.make_room(self, more)
        self.charge.size += more
        self._budget.add(more)

    def adopt(self, charge: Charge) -> None:
        """It is the same request as another guest's: that is in memory once."""
        self._drop()
        self.charge = charge
        charge.users += 1
        if charge.users == 1:
            self._budget.add(charge.size)
        self._since = time.monotonic()
        self._budget.enter(self)

    def answering(self) -> None:
        """It is read; its answer is to come."""
        self._grace, self._since = ANSWERING_GRACE, time.monotonic()

    @property
    def weight(self) -> float:
        """Bytes that are its own doing."""
        return self.charge.size / max(self.charge.users, 1)

    def is_late(self, now: float) -> bool:
        """Whether it holds something, and has for long."""
        return bool(self.charge.size) and not self.is_turned_out and now - self._since >= self._grace

    def slowness(self, now: float) -> float:
        """Seconds for each byte that it holds."""
        return (now - self._since) / max(self.weight, 1)

    def turn_out(self) -> None:
        """Ends what its task does in the block."""
        self.is_turned_out = True
        if self._task is not None:
            self._task.cancel()

    def _drop(self) -> None:
        self._budget.leave(self)
        self.charge.users -= 1
        if not self.charge.users:
            self._budget.add(-self.charge.size)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
