"""Writes rows to the database in batches, because syncing the disk for each one would cost more than it is worth."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from appliance.core.store.database import StoreError

log = logging.getLogger(__name__)

Row = TypeVar("Row")

MOST_WAITING = 20_000
"""The most rows that wait while the database refuses writes; beyond that, the oldest are lost first."""


class WriteBehind(Generic[Row]):
    """A queue in front of `record`, which stores a batch or raises StoreError.

    A row waits up to `pace` seconds so that others can join its batch. `called` is the name of the rows in the log.
    """

    def __init__(self, called: str, record: Callable[[Sequence[Row]], None], pace: float) -> None:
        self._called = called
        self._record = record
        self._pace = pace
        self._waiting: deque[Row] = deque(maxlen=MOST_WAITING)
        self._wake = asyncio.Event()
        self._lock = asyncio.Lock()

    def add(self, row: Row) -> None:
        """Queues a row."""
        self._waiting.append(row)
        self._wake.set()

    async def run(self) -> None:
        """The loop; runs until it is cancelled."""
        while True:
            await self._wake.wait()
            await asyncio.sleep(self._pace)
            self._wake.clear()
            await self.write()
            if self._waiting:
                self._wake.set()

    async def write(self) -> None:
        """Writes the waiting rows in order. If the database fails, up to MOST_WAITING rows wait for the next try."""
        async with self._lock:
            batch = [self._waiting.popleft() for _ in range(len(self._waiting))]
            if not batch:
                return
            try:
                await asyncio.to_thread(self._record, batch)
            except StoreError as error:
                log.error("%d %s cannot be recorded yet: %s", len(batch), self._called, error.message)
                room = MOST_WAITING - len(self._waiting)
                self._waiting.extendleft(batch[: -room - 1 : -1])
