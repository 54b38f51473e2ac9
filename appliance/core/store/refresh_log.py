"""Collects what refreshes found and writes it behind: a sync of the disk for each would cost more than the refresh."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Mapping
from typing import Any

from appliance.core.models import RefreshOutcome
from appliance.core.store.database import StoreError
from appliance.core.store.health import HealthStore

log = logging.getLogger(__name__)

WRITE_EVERY = 2.0
"""Seconds that a refresh which found nothing new may wait: lost by a kill, it is only done again."""
MOST_WAITING = 20_000
"""Refreshes that wait for a database that does not take them; older ones are lost first."""


class RefreshLog:
    """Refreshes on their way to `store`."""

    def __init__(self, store: HealthStore) -> None:
        self._store = store
        self._waiting: deque[tuple[int, RefreshOutcome, Mapping[str, Any]]] = deque(maxlen=MOST_WAITING)
        self._lock = asyncio.Lock()

    async def add(self, repo_id: int, outcome: RefreshOutcome, columns: Mapping[str, Any]) -> None:
        """A refresh ended. What moved, failed or was waited for is written before this returns, if it can be."""
        self._waiting.append((repo_id, outcome, columns))
        if outcome.asked or outcome.result != "unchanged":
            await self.write()

    async def run(self) -> None:
        """The loop; ends by being cancelled."""
        while True:
            await asyncio.sleep(WRITE_EVERY)
            await self.write()

    async def write(self) -> None:
        """Writes what waits, in order. A database that fails loses nothing but time, up to a bound."""
        async with self._lock:
            batch = [self._waiting.popleft() for _ in range(len(self._waiting))]
            if not batch:
                return
            try:
                await asyncio.to_thread(self._store.record_refreshes, batch)
            except StoreError as error:
                names = ", ".join(dict.fromkeys(outcome.repo for _, outcome, _ in batch[-3:]))
                log.error("%d refreshes (%s) cannot be recorded yet: %s", len(batch), names, error.message)
                room = MOST_WAITING - len(self._waiting)
                self._waiting.extendleft(batch[: -room - 1 : -1])
