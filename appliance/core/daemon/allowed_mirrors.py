"""Whole mirrors of repositories that guests brought here, as something that goes when the disk is short."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping

from appliance.core.daemon.allowed_repos import RECENT
from appliance.core.maintenance.usage import MIRRORS
from appliance.core.models import ALLOWED, Health, Repo
from appliance.core.process.cold import ColdThing
from appliance.core.process.endurance import Endurance

log = logging.getLogger(__name__)

Remove = Callable[[Repo], Awaitable[bool]]
"""Ends a repository, unless it is in use or something depends on it by then. Returns whether it did.

Raises GitmirrorError, OSError.
"""


class AllowedMirrors:
    """The mirrors of `repos` with source `allowed`, of which nothing was recorded.

    `recorded` gives the names that have sessions, and `last_use` when guests last used each repository, in Unix
    seconds. Both read the database, in a thread. `is_needed` says whether another repository has one as a submodule.
    """

    kind = MIRRORS

    def __init__(
        self,
        repos: Callable[[], Iterable[Repo]],
        health: Callable[[int], Health],
        recorded: Callable[[], Iterable[str]],
        last_use: Callable[[], Mapping[str, float]],
        remove: Remove,
        is_needed: Callable[[Repo], bool] = lambda _: False,
    ) -> None:
        self._repos = repos
        self._health = health
        self._recorded = recorded
        self._last_use = last_use
        self._remove = remove
        self._is_needed = is_needed
        self._endurance = Endurance(log, "removing its mirror")

    async def candidates(self, sizes: Mapping[str, int]) -> list[ColdThing]:
        """Mirrors that no guest needs now, the longest unused first."""
        return [thing for thing, _ in await self._found(sizes)]

    async def reclaim(self, wanted: int, sizes: Mapping[str, int]) -> list[ColdThing]:
        """Removes whole repositories until `wanted` bytes are free."""
        gone: list[ColdThing] = []
        for thing, repo in await self._found(sizes):
            if wanted <= 0:
                break
            with self._endurance.over(repo.name):
                if await self._remove(repo):
                    gone.append(thing)
                    wanted -= thing.bytes
        return gone

    async def _found(self, sizes: Mapping[str, int]) -> list[tuple[ColdThing, Repo]]:
        allowed = [repo for repo in self._repos() if repo.source == ALLOWED]
        if not allowed:
            return []
        recorded, last_use = await asyncio.to_thread(lambda: (set(self._recorded()), self._last_use()))
        found = []
        for repo in allowed:
            used_at = max(repo.created_at, last_use.get(repo.name, 0.0))
            if repo.name in recorded or self._health(repo.id).cloning or time.time() - used_at < RECENT:
                continue
            if self._is_needed(repo):
                continue
            what = "the whole mirror, which is cloned again when a guest asks for it"
            found.append((ColdThing(self.kind, repo.name, what, sizes.get(repo.name, 0), used_at), repo))
        return sorted(found, key=lambda each: each[0].used_at)
