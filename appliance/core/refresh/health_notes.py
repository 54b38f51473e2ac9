"""What is learnt of a mirror otherwise than by a refresh: its size after a repack, its sessions after a push."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from appliance.core.refresh.scheduler import Scheduler
from appliance.core.store.database import StoreError
from appliance.core.store.health import HealthStore

log = logging.getLogger(__name__)


class HealthNotes:
    """Notes health columns with `scheduler`, which knows how every mirror is, and in `store`."""

    def __init__(self, scheduler: Scheduler, store: HealthStore) -> None:
        self._scheduler = scheduler
        self._store = store

    async def learn(self, repo_id: int, **columns: Any) -> None:
        """Known at once, also when it cannot be stored: that is logged."""
        self._scheduler.note(repo_id, **columns)
        try:
            await asyncio.to_thread(self._store.update, repo_id, **columns)
        except StoreError as error:
            log.error("the health of repository %d cannot be recorded: %s", repo_id, error.message)
