"""Tells guests how far behind a mirror is, and refreshes it when a guest asks for a commit that it lacks."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from appliance.core.errors import GitmirrorError
from appliance.core.git.mirror import Mirror, has_object
from appliance.core.health import followed_branch, lag_of, state_of
from appliance.core.models import Repo
from appliance.core.refresh.scheduler import Scheduler
from appliance.core.serving.fetch.away import AwaySessions
from appliance.core.units import rfc3339
from appliance.core.workspace.snapshots import Snapshots

log = logging.getLogger(__name__)

LOOK_AGAIN = 2.0
"""Seconds between two refreshes of one repository that missing commits cause."""
LOOK_FOR = 20.0
"""Seconds that a guest waits for such a refresh."""
MOST_CHECKS = 8
"""How many git processes look for wanted commits at once."""


class Freshness:
    """Answers `/freshness` from the health that `scheduler` keeps and from the current snapshots."""

    def __init__(
        self,
        scheduler: Scheduler,
        workspaces: Snapshots,
        mirror_of: Callable[[str], Mirror],
        stale_after: Callable[[], float],
        away: AwaySessions,
    ) -> None:
        self._away = away
        self._scheduler = scheduler
        self._workspaces = workspaces
        self._mirror_of = mirror_of
        self._stale_after = stale_after
        self._checks = asyncio.Semaphore(MOST_CHECKS)
        self._looked: dict[int, float] = {}
        self._looked_until: dict[int, float] = {}
        self._looking: dict[int, asyncio.Task[bool]] = {}

    async def document(self, repo: Repo, want: str | None) -> dict[str, Any]:
        """`{name, branch, tip, snapshot, lag, verified_at, state}`, and `has` if `want` names a commit."""
        has = None
        if want is not None:
            began = time.monotonic()
            has = await self._has(repo, want) or await self._bring(repo, want)
            # A look that another guest began may have brought it since.
            if not has and (await self._look(repo) or self._looked_until.get(repo.id, began) > began):
                has = await self._has(repo, want)
        health, now = self._scheduler.health(repo.id), time.time()
        snapshot, lag = self._workspaces.current(repo), lag_of(health, now)
        document: dict[str, Any] = {
            "name": repo.name,
            "branch": followed_branch(repo, health),
            "tip": health.tip,
            "snapshot": snapshot.commit if snapshot else None,
            "lag": None if lag is None else round(lag, 3),
            "verified_at": None if health.verified_at is None else rfc3339(health.verified_at),
            "state": state_of(repo, health, now, self._stale_after()),
        }
        return document if has is None else document | {"has": has}

    async def _has(self, repo: Repo, oid: str) -> bool:
        async with self._checks:
            return await has_object(self._mirror_of(repo.name), oid)

    async def _bring(self, repo: Repo, oid: str) -> bool:
        """Whether a commit is here now because it is a turn's that another node took."""
        try:
            return self._away.is_on and await self._away.bring_commit(repo, oid)
        except GitmirrorError as error:
            log.info("%s: %s", repo.name, error.message)
            return False

    async def _look(self, repo: Repo) -> bool:
        """Refreshes, unless that was just done; joins a running refresh. Returns whether it succeeded."""
        looking, now = self._looking.get(repo.id), time.monotonic()
        if looking is None:
            if now - self._looked.get(repo.id, -LOOK_AGAIN) < LOOK_AGAIN:
                return False
            self._looked[repo.id] = now
            looking = asyncio.create_task(self._refresh(repo), name=f"look upstream for {repo.name}")
            self._looking[repo.id] = looking
            looking.add_done_callback(lambda _: self._note_end(repo.id))
        return await asyncio.shield(looking)

    def _note_end(self, repo_id: int) -> None:
        self._looked_until[repo_id] = time.monotonic()
        self._looking.pop(repo_id, None)

    async def _refresh(self, repo: Repo) -> bool:
        try:
            async with asyncio.timeout(LOOK_FOR):
                await self._scheduler.refresh_now(repo)
        except (GitmirrorError, TimeoutError):
            return False
        return True
