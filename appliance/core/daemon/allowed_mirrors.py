"""Whole mirrors of repositories that guests brought here, as something that goes when the disk is short."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass

from appliance.core.daemon.registry_follower import RegistryFollower
from appliance.core.events.facts import MirrorEvicted, Publish
from appliance.core.git.mirrors import Mirrors
from appliance.core.git.ref_sets import AGENTS, ARCHIVE
from appliance.core.maintenance.usage import MIRRORS
from appliance.core.models import Health, Repo
from appliance.core.process.cold import ColdThing
from appliance.core.process.endurance import Endurance
from appliance.core.recording.turns import TURNS
from appliance.core.store.stores import Stores
from appliance.core.workspace.disk.disks import Disks
from appliance.core.workspace.snapshots import Snapshots

log = logging.getLogger(__name__)

ALLOWED = "allowed"
"""The `source` of a repository that nobody registered: `[[allow]]` allows it, and a guest asked for it."""
RECORDED = (AGENTS, ARCHIVE, TURNS)
"""Where the refs of sessions and of turns are."""
LOCKED = 5.0
"""Seconds to wait for a mirror that is busy."""
RECENT = 60.0
"""Seconds after its registration or its last fetch for which such a mirror stays in any case."""

Remove = Callable[[Repo], Awaitable[bool]]
"""Unregisters a repository and deletes its mirror, unless it has recordings by then. Returns whether it did.

Raises GitmirrorError, OSError.
"""


@dataclass(frozen=True)
class AllowedRemoval:
    """Removes whole repositories, unless something was recorded in them. A `Remove` is its method."""

    stores: Stores
    mirrors: Mirrors
    follower: RegistryFollower
    workspaces: Snapshots
    disks: Disks

    def recorded(self) -> set[str]:
        """The names of repositories that have sessions. Raises StoreError."""
        return set(self.stores.sessions.count_by_repo())

    async def remove(self, repo: Repo) -> bool:
        """Unregisters a repository and deletes all that is here of it. Raises GitmirrorError, OSError."""
        try:
            async with asyncio.timeout(LOCKED) as waiting, self.mirrors.locks.exclusive(repo.name):
                waiting.reschedule(None)
                # Pushes wait for the lock, and those that came before it have recorded something.
                if await self._is_recorded(repo):
                    return False
                await asyncio.to_thread(self.stores.registry.remove, repo.name, "the config")
                await self.follower.follow()
                await asyncio.to_thread(self.mirrors(repo.name).discard)
        except TimeoutError:
            # It is being refreshed or pushed to, so it is in use.
            return False
        await self.workspaces.delete(repo.name)
        await self.disks.delete(repo.name)
        await asyncio.to_thread(shutil.rmtree, self.mirrors.layout.lfs / repo.name, ignore_errors=True)
        return True

    async def _is_recorded(self, repo: Repo) -> bool:
        """Looks at the database, and at the mirror, which may have turns that the database does not know."""
        if repo.name in await asyncio.to_thread(self.recorded):
            return True
        mirror = self.mirrors(repo.name)
        return mirror.exists() and bool(await mirror.local_refs(*RECORDED))


class AllowedMirrors:
    """The mirrors of `repos` with source `allowed`, of which nothing was recorded.

    `recorded` gives the names that have sessions or attachments, and `last_use` when guests last fetched each
    repository, in Unix seconds. Both read the database, in a thread.
    """

    kind = MIRRORS

    def __init__(
        self,
        repos: Callable[[], Iterable[Repo]],
        health: Callable[[int], Health],
        recorded: Callable[[], Iterable[str]],
        last_use: Callable[[], Mapping[str, float]],
        remove: Remove,
        publish: Publish,
    ) -> None:
        self._repos = repos
        self._health = health
        self._recorded = recorded
        self._last_use = last_use
        self._remove = remove
        self._publish = publish
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
                    self._publish(MirrorEvicted(repo=repo, bytes=thing.bytes))
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
            what = "the whole mirror, which a guest can bring here again"
            found.append((ColdThing(self.kind, repo.name, what, sizes.get(repo.name, 0), used_at), repo))
        return sorted(found, key=lambda each: each[0].used_at)
