"""Writes rows to the database in batches, because syncing the disk for each one would cost more than it is worth.

Listeners are notified of a row once it is stored, so that a listener that looks it up finds it. They wait TELL_WITHIN
at most, so that a database that hangs silences nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from appliance.core.store.database import StoreError

log = logging.getLogger(__name__)

Row = TypeVar("Row")

MOST_WAITING = 20_000
"""The most rows that wait while the database refuses writes; beyond that, the oldest are lost first."""
TELL_WITHIN = 1.0
"""Seconds after which listeners are notified of a row that is still not stored."""


@contextlib.contextmanager
def once_stored(tell: Callable[[], None]) -> Iterator[None]:
    """Calls `tell` when the block that stores something has ended or failed, or after TELL_WITHIN if it still runs.

    When the block is cancelled before that, nothing is reported.
    """
    is_over = False

    def tell_once() -> None:
        nonlocal is_over
        if not is_over:
            is_over = True
            tell()

    late = asyncio.get_running_loop().call_later(TELL_WITHIN, tell_once)
    try:
        yield
    except asyncio.CancelledError:
        is_over = True
        raise
    finally:
        late.cancel()
        tell_once()


@dataclass(eq=False, slots=True)
class _Queued(Generic[Row]):
    row: Row
    tell_at: float
    told: bool = False


class WriteBehind(Generic[Row]):
    """A queue in front of `record`, which stores a batch or raises StoreError.

    A row waits up to `pace` seconds so that others can join its batch. `told` is called once for each row, when it is
    stored or TELL_WITHIN after it was added. `called` is the name of the rows in the log.
    """

    def __init__(
        self,
        called: str,
        record: Callable[[Sequence[Row]], None],
        pace: float,
        told: Callable[[Row], None] = lambda _: None,
    ) -> None:
        self._called = called
        self._record = record
        self._pace = pace
        self._told = told
        self._waiting: deque[_Queued[Row]] = deque(maxlen=MOST_WAITING)
        self._untold: deque[_Queued[Row]] = deque()
        self._wake = asyncio.Event()
        self._lock = asyncio.Lock()

    def add(self, row: Row) -> None:
        """Queues a row."""
        queued = _Queued(row, time.monotonic() + TELL_WITHIN)
        self._waiting.append(queued)
        self._untold.append(queued)
        self._wake.set()

    async def run(self) -> None:
        """The loop; runs until it is cancelled."""
        while True:
            await self._wake.wait()
            await asyncio.sleep(self._pace)
            self._wake.clear()
            writing = asyncio.create_task(self.write(), name=f"write {self._called}")
            try:
                while not writing.done():
                    await asyncio.wait([writing], timeout=TELL_WITHIN / 10)
                    self._tell_late()
                writing.result()
            finally:
                writing.cancel()
            if self._waiting:
                self._wake.set()

    async def write(self) -> None:
        """Writes the waiting rows in order. If the database fails, up to MOST_WAITING rows wait for the next try."""
        async with self._lock:
            batch = [self._waiting.popleft() for _ in range(len(self._waiting))]
            if not batch:
                return
            try:
                await asyncio.to_thread(self._record, [queued.row for queued in batch])
            except StoreError as error:
                log.error("%d %s cannot be recorded yet: %s", len(batch), self._called, error.message)
                room = MOST_WAITING - len(self._waiting)
                self._waiting.extendleft(batch[: -room - 1 : -1])
            self._tell(batch[-1])

    async def settle(self) -> None:
        """Reports all rows added so far once they are stored, but TELL_WITHIN from now at the latest."""
        last = self._untold[-1] if self._untold else None
        writing = asyncio.ensure_future(self.write())
        await asyncio.wait([writing], timeout=TELL_WITHIN)
        if last is not None:
            self._tell(last)

    def _tell(self, last: _Queued[Row]) -> None:
        """Reports all rows up to and including `last` that were not reported yet."""
        while not last.told:
            queued = self._untold.popleft()
            queued.told = True
            self._told(queued.row)

    def _tell_late(self) -> None:
        """Reports rows that have waited for the database for too long."""
        now = time.monotonic()
        while self._untold and self._untold[0].tell_at <= now:
            self._tell(self._untold[0])
