"""Counts the sessions of a repository again whenever a push or the retention may have changed their number."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from appliance.core.errors import GitmirrorError
from appliance.core.events.facts import SessionsEnded, TurnRecorded
from appliance.core.events.fleet_facts import TurnsArrived
from appliance.core.models import Repo
from appliance.core.store.sessions import SessionStore

log = logging.getLogger(__name__)

Begin = Callable[[Coroutine[Any, Any, None], str], object]


class SessionCount:
    """Counts in `store`, one count at a time per repository, and passes the number to `learn` as a health column."""

    def __init__(
        self,
        store: SessionStore,
        learn: Callable[..., Awaitable[None]],
        begin: Begin,
    ) -> None:
        self._store = store
        self._learn = learn
        self._begin = begin
        self._again: dict[int, bool] = {}

    def changed(self, event: TurnRecorded | SessionsEnded | TurnsArrived) -> None:
        """Starts a count. Any number of changes during a count cause one more count after it."""
        repo = event.repo
        if repo.id in self._again:
            self._again[repo.id] = True
        else:
            self._again[repo.id] = False
            self._begin(self._count(repo), f"count {repo.name}")

    async def _count(self, repo: Repo) -> None:
        try:
            again = True
            while again:
                self._again[repo.id] = False
                sessions = await asyncio.to_thread(self._store.all, repo.name)
                await self._learn(repo.id, sessions=len(sessions))
                again = self._again[repo.id]
        except GitmirrorError as error:
            log.warning("%s: cannot count sessions: %s", repo.name, error.message)
        finally:
            del self._again[repo.id]
