"""One memory budget for the requests of all guests, while they are read and answered."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from types import TracebackType

from appliance.core.serving.net.acceptor import Busy
from appliance.core.serving.net.seats import Peer

SMALL = 32768
"""Bytes of each request that are not counted, so that small requests are read whatever the other guests do."""
WAIT = 10.0
"""Seconds that a guest waits for memory before it gets an error that says to try again."""
POLL = 0.2
READING_GRACE = 5.0
"""Seconds that a large request may take to arrive; after that it may be ended if others wait."""
ANSWERING_GRACE = 30.0
"""Seconds that the response to a large request may take; after that it may be ended if others wait."""


class Charge:
    """The memory of one request in bytes, unpacked and parsed. Guests that sent the same request share one charge."""

    def __init__(self) -> None:
        self.size = 0
        self.users = 1


class Budget:
    """At most MOST bytes for the requests of all guests, of all protocols together."""

    MOST = 128 * 2**20

    def __init__(self) -> None:
        self.used = 0
        self._shares: set[Share] = set()
        self._waiting: set[asyncio.Future[None]] = set()

    def share(self, peer: Peer) -> Share:
        """A context for one request, from its first byte to the end of its response."""
        return Share(self, peer)

    def enter(self, share: Share) -> None:
        """Adds a share that begins to use memory."""
        self._shares.add(share)

    def leave(self, share: Share) -> None:
        """Removes a share that no longer uses memory."""
        self._shares.discard(share)

    def add(self, size: int) -> None:
        """Counts `size` more bytes as used; a negative size frees them and wakes the waiting guests."""
        self.used += size
        if size < 0:
            for future in self._waiting:
                _resolve(future)

    async def make_room(self, share: Share, more: int) -> None:
        """Waits until `more` bytes fit; meanwhile ends requests that hold much memory for long. Raises Busy.

        A request that is the only one never waits, because the protocols' own bounds limit it.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + WAIT
        while self.used + more > self.MOST and self.used > share.charge.size:
            self._end_late_request(share)
            remaining = until - loop.time()
            if remaining <= 0:
                raise Busy("too many large requests are being read at once; try again")
            future: asyncio.Future[None] = loop.create_future()
            self._waiting.add(future)
            timer = loop.call_later(min(remaining, POLL), _resolve, future)
            try:
                await future
            finally:
                timer.cancel()
                self._waiting.discard(future)

    def _end_late_request(self, share: Share) -> None:
        """Ends one late request: of the peer that holds the most memory, the one with the most seconds per byte."""
        held: Counter[Peer] = Counter()
        for other in self._shares:
            held[other.peer] += round(other.weight)
        if any(other.is_ended for other in self._shares):
            return
        now = time.monotonic()
        late = [
            other
            for other in self._shares
            if other is not share and other.is_late(now) and held[other.peer] >= held[share.peer]
        ]
        if late:
            max(late, key=lambda other: (held[other.peer], other.slowness(now))).end()


class Share:
    """One request's part of the budget. A context manager in the task that reads and answers the request.

    The block raises Busy if the request is ended so that others can be read.
    """

    def __init__(self, budget: Budget, peer: Peer) -> None:
        self.peer = peer
        self.charge = Charge()
        self._budget = budget
        self._total = 0
        self._since = 0.0
        self._grace = READING_GRACE
        self.is_ended = False
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
        if self.is_ended and self._task is not None:
            others = self._task.uncancel() > self._cancelling
            if kind is asyncio.CancelledError and not others:
                raise Busy("this large request took too long while others waited; try again") from None

    async def grow(self, size: int) -> None:
        """Charges `size` more bytes. Waits until they fit. Raises Busy."""
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
        """Shares the charge of another guest's equal request, which is in memory only once."""
        self._drop()
        self.charge = charge
        charge.users += 1
        if charge.users == 1:
            self._budget.add(charge.size)
        self._since = time.monotonic()
        self._budget.enter(self)

    def answering(self) -> None:
        """Notes that the request is read and its response begins."""
        self._grace, self._since = ANSWERING_GRACE, time.monotonic()

    @property
    def weight(self) -> float:
        """Bytes that this share is responsible for: its part of a shared charge."""
        return self.charge.size / max(self.charge.users, 1)

    def is_late(self, now: float) -> bool:
        """Whether it has held memory for longer than its grace time."""
        return bool(self.charge.size) and not self.is_ended and now - self._since >= self._grace

    def slowness(self, now: float) -> float:
        """Seconds per byte that it holds."""
        return (now - self._since) / max(self.weight, 1)

    def end(self) -> None:
        """Cancels the block of its task."""
        self.is_ended = True
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
