"""Collects hydrations and writes them behind, in batches: a row each would cost more than the hydration."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque

from appliance.core.models import Hydration
from appliance.core.store.activity import ActivityStore
from appliance.core.store.database import StoreError

log = logging.getLogger(__name__)

WRITE_AFTER = 0.8
"""Seconds that a row waits for others to come along."""
MOST_WAITING = 20_000
"""Rows that wait for a database that does not take them; older ones are lost first."""


class ActivityLog:
    """Rows on their way to `store`."""

    def __init__(self, store: ActivityStore) -> None:
        self._store = store
        self._waiting: deque[tuple[float, Hydration]] = deque(maxlen=MOST_WAITING)
        self._wake = asyncio.Event()

    def add(self, event: Hydration) -> None:
        """A hydration ended just now."""
        self._waiting.append((time.time(), event))
        self._wake.set()

    async def run(self) -> None:
        """The loop; ends by being cancelled."""
        while True:
            await self._wake.wait()
            await asyncio.sleep(WRITE_AFTER)
            self._wake.clear()
            await self.write()
            if self._waiting:
                self._wake.set()

    async def write(self) -> None:
        """Writes what waits. A database that fails loses nothing but time; the rows wait on, up to a bound."""
        if not self._waiting:
            return
        batch = [self._waiting.popleft() for _ in range(len(self._waiting))]
        try:
            await asyncio.to_thread(self._store.record, batch)
        except StoreError as error:
            log.warning("%d hydrations cannot be recorded yet: %s", len(batch), error.message)
            room = MOST_WAITING - len(self._waiting)
            self._waiting.extendleft(batch[: -room - 1 : -1])
