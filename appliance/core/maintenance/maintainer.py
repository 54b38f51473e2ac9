"""Keeps mirrors small and fast: a geometric repack when needed, and a full repack once a night.

It works on one mirror at a time, at low priority, and never during a fetch or push of the same mirror: a push that
arrives meanwhile ends the repack, which is tried again later.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from appliance.core.git.mirror import Mirror
from appliance.core.git.mirror_locks import MirrorLocks
from appliance.core.maintenance.anchors import PREFIXES, sort_out
from appliance.core.models import Health, Repo
from appliance.core.process.endurance import Endurance
from appliance.core.store.health import HealthStore

log = logging.getLogger(__name__)

MOST_PACKS = 20
MOST_LOOSE = 2000
MOST_LOOSE_REFS = 500
LOOK_EVERY = 30.0
"""Seconds between two checks of the mirrors whose refs moved."""
NIGHT = range(2, 6)
"""The local hours between which full repacks run."""
DAY = 20 * 3600.0
"""Seconds after its last full repack until a mirror is due again, on the following night."""
REPACK_DEADLINE = 4 * 3600.0
CRUFT_EXPIRES = "2.weeks.ago"
"""Unreachable objects stay this long, because a guest may be about to fetch a commit that a force-push just dropped."""


@dataclass(frozen=True)
class Clutter:
    """The packs and loose files that have piled up in a mirror since its last repack."""

    packs: int
    loose: int
    loose_refs: int

    @property
    def needs_repack(self) -> bool:
        """Whether there are so many packs or loose objects that they slow serving down."""
        return self.packs > MOST_PACKS or self.loose > MOST_LOOSE

    @property
    def needs_packed_refs(self) -> bool:
        """Whether there are so many loose refs that listing them is slow."""
        return self.loose_refs > MOST_LOOSE_REFS


def measure_clutter(mirror: Path) -> Clutter:
    """Counts packs, loose objects and loose refs. Takes milliseconds, but reads the disk."""
    packs = loose = 0
    with contextlib.suppress(FileNotFoundError):
        packs = sum(entry.name.endswith(".pack") for entry in os.scandir(mirror / "objects" / "pack"))
    for directory in os.scandir(mirror / "objects"):
        if len(directory.name) == 2:
            loose += sum(1 for _ in os.scandir(directory.path))
    refs = sum(len(files) for _, _, files in os.walk(mirror / "refs"))
    return Clutter(packs, loose, refs)


class Maintainer:
    """Maintains the mirrors of `repos()`. `learn` stores health columns; `clock` returns Unix seconds."""

    def __init__(
        self,
        mirror_of: Callable[[str], Mirror],
        locks: MirrorLocks,
        store: HealthStore,
        *,
        repos: Callable[[], list[Repo]],
        health: Callable[[int], Health],
        learn: Callable[..., Awaitable[None]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._mirror_of = mirror_of
        self._locks = locks
        self._store = store
        self._repos = repos
        self._health = health
        self._learn = learn
        self._clock = clock
        self._moved: set[str] = set()

    def mark(self, name: str) -> None:
        """Marks a mirror as written to, so that the loop checks it."""
        self._moved.add(name)

    async def run(self) -> None:
        """Runs the loop until it is cancelled."""
        endurance = Endurance(log, "maintenance")
        while True:
            await asyncio.sleep(LOOK_EVERY)
            for repo in self._repos():
                if repo.enabled and self._health(repo.id).cloned:
                    with endurance.over(repo.name):
                        await self._look_after(repo)

    async def _look_after(self, repo: Repo) -> None:
        if self._is_nights_turn(repo):
            await self.maintain(repo, whole=True)
        elif repo.name in self._moved:
            self._moved.discard(repo.name)
            clutter = await asyncio.to_thread(measure_clutter, self._mirror_of(repo.name).path)
            if clutter.needs_repack or clutter.needs_packed_refs:
                await self.maintain(repo, whole=False)

    def _is_nights_turn(self, repo: Repo) -> bool:
        health = self._health(repo.id)
        since = health.maintained_at or repo.created_at
        return datetime.fromtimestamp(self._clock()).hour in NIGHT and self._clock() - since > DAY

    async def maintain(self, repo: Repo, *, whole: bool) -> bool:
        """Repacks, packs refs and writes the commit-graph. `whole` makes one pack and deletes expired anchors.

        Returns True when done and False when a push interrupted it. Raises GitmirrorError.
        """
        mirror = self._mirror_of(repo.name)
        mirror = Mirror(mirror.path, mirror.git.gently())
        work: asyncio.Task[None] | None = None

        def yield_to_push() -> None:
            if work is not None:
                work.cancel()

        async with self._locks.exclusive(repo.name, yield_to_push):
            start = time.monotonic()
            work = asyncio.create_task(self._work(repo, mirror, whole))
            try:
                await asyncio.wait([work])
            except asyncio.CancelledError:
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)
                raise
            finally:
                await asyncio.to_thread(mirror.remove_leftovers)
            if work.cancelled():
                self._moved.add(repo.name)
                log.info("%s: maintenance gave way to a push", repo.name)
                return False
            work.result()
            columns: dict[str, Any] = {"size": await asyncio.to_thread(mirror.disk_size)}
            if whole:
                columns["maintained_at"] = self._clock()
        await self._learn(repo.id, **columns)
        log.info(
            "%s: maintained in %.1fs (%s)",
            repo.name,
            time.monotonic() - start,
            "whole" if whole else "by need",
        )
        return True

    async def _work(self, repo: Repo, mirror: Mirror, whole: bool) -> None:
        if whole:
            await self._end_anchors(repo, mirror)
        await mirror.git.run("pack-refs", "--all", "--prune", cwd=mirror.path, deadline=REPACK_DEADLINE)
        if whole:
            shape = ("--cruft", f"--cruft-expiration={CRUFT_EXPIRES}", "-d", "--write-bitmap-index")
        else:
            shape = ("--geometric=2", "-d", "--write-midx", "--write-bitmap-index")
        # -n: nobody reads the lists of refs and packs for dumb HTTP, which a kill can leave behind half written.
        await mirror.git.run("repack", "--quiet", "-n", *shape, cwd=mirror.path, deadline=REPACK_DEADLINE)
        split = () if whole else ("--split",)
        await mirror.git.run(
            "commit-graph",
            "write",
            "--reachable",
            "--no-progress",
            *split,
            cwd=mirror.path,
            deadline=REPACK_DEADLINE,
        )

    async def _end_anchors(self, repo: Repo, mirror: Mirror) -> None:
        refs = await mirror.local_refs(*PREFIXES)
        times = await asyncio.to_thread(self._store.anchor_times, repo.id)
        kept, gone = sort_out(refs, times, self._clock())
        await mirror.update_refs(f"delete {ref} {refs[ref]}\n" for ref in gone)
        await asyncio.to_thread(self._store.set_anchor_times, repo.id, kept)
