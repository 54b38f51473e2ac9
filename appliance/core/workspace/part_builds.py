"""Builds the parts of trees that guests ask for.

There may be any number of different parts, so they get a share of the work that cannot grow: one is built at a time on
the node, what every repository has comes first, and guests take turns.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable

from appliance.core.models import Repo
from appliance.core.process.endurance import EXPECTED
from appliance.core.workspace.snapshot_place import remove_foreign
from appliance.core.workspace.snapshot_registry import UNASKED, KeptBranch, KeptSnapshot, KeptSnapshots, NoSnapshot

Failed = Callable[[Repo, KeptBranch, Iterable[KeptSnapshot], BaseException], None]


class PartBuilds:
    """`places` is how many builds of any kind run at once, `build` builds one snapshot, and `failed` notes an error.

    `follow` finds out which submodules a branch has, where no whole snapshot of it is built that would.
    """

    def __init__(
        self,
        kept: KeptSnapshots,
        places: asyncio.Semaphore,
        build: Callable[[Repo, KeptSnapshot], Awaitable[None]],
        failed: Failed,
        follow: Callable[[Repo, KeptBranch], Awaitable[None]],
    ) -> None:
        self._kept = kept
        self._places = places
        self._build = build
        self._failed = failed
        self._follow = follow
        self._one = asyncio.Semaphore(1)

    def refresh(self, repo: Repo, branch: KeptBranch) -> None:
        """Builds the parts of a branch that moved."""
        for part in branch.parts():
            part.due = True
        self.start(repo, branch)

    def start(self, repo: Repo, branch: KeptBranch) -> None:
        """Builds the parts of a branch that are due."""
        if branch.next_part() is not None and (branch.building_parts is None or branch.building_parts.done()):
            name = f"parts {repo.name}"
            branch.building_parts = asyncio.create_task(self._run(repo, branch), name=name)

    async def _run(self, repo: Repo, branch: KeptBranch) -> None:
        try:
            while branch.next_part() is not None:
                async with branch.tree:
                    # A whole snapshot may take minutes, during which parts of other branches are built.
                    pass
                # The tree comes before the place, so that no place is held while waiting for it. Whole snapshots take
                # them the other way round, but of the places, one part can keep only the one of its own branch waiting.
                async with self._one, branch.tree, self._places:
                    if (part := branch.next_part()) is not None:
                        branch.took_turn(part)
                        await self._build_part(repo, branch, part)
        finally:
            for part in branch.parts():
                if not part.waits:
                    part.ended.set()

    async def _build_part(self, repo: Repo, branch: KeptBranch, part: KeptSnapshot) -> None:
        known = self._kept.repository(repo)
        part.due, part.in_work, part.waits = False, True, False
        try:
            if not branch.swept and branch.has_only_parts() and branch.is_idle():
                # Whole snapshots sweep once the usual one is known, which an earlier `serve` may have left.
                branch.swept = True
                await asyncio.to_thread(remove_foreign, branch.directory, list(branch.kept))
            if time.monotonic() - part.asked_at > UNASKED:
                self._kept.drop(known, branch, part)
                return
            if branch.has_only_parts():
                await self._follow(repo, branch)
            await self._build(repo, part)
            part.error = None
        except EXPECTED as error:
            self._failed(repo, branch, [part], error)
            if isinstance(error, NoSnapshot):
                # The branch or the directory is no longer there.
                self._kept.drop(known, branch, part)
        finally:
            part.in_work = False
            if not part.waits:
                part.ended.set()
