"""Records what changes in a mirror between refreshes: its size after a repack, its sessions after a push."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from appliance.core.refresh.scheduler import Scheduler
from appliance.core.store.database import StoreError
from appliance.core.store.health import HealthStore

log = logging.getLogger(__name__)


class HealthNotes:
    """Records health columns in `scheduler`, which has the health of every mirror in memory, and in `store`."""

    def __init__(self, scheduler: Scheduler, store: HealthStore) -> None:
        self._scheduler = scheduler
        self._store = store

    async def learn(self, repo_id: int, **columns: Any) -> None:
        """Records columns in memory first, then in the database, and logs it if the database fails."""
        self._scheduler.note(repo_id, **columns)
        try:
            await asyncio.to_thread(self._store.update, repo_id, **columns)
        except StoreError as error:
            log.error("the health of repository %d cannot be recorded: %s", repo_id, error.message)
