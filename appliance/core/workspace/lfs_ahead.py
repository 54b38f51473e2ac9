"""Fetches the LFS objects of tips before their tars are built, and decides how long a tar waits for them.

A tip whose objects are not all here has no tar yet: guests get that of the tip before, until the fetch has ended or has
taken too long. Then the tar is built with what is here. What nobody gave is asked for again later, and the tar is built
again once some of it has come.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from appliance.core.config.fields import CONTENT
from appliance.core.config.settings import WorkspaceConfig
from appliance.core.lfs.pointers import Pointer
from appliance.core.models import Repo
from appliance.core.process.endurance import EXPECTED
from appliance.core.units import format_size
from appliance.core.workspace.lfs_files import Choice, Chosen, Contents, LfsFiles, LfsSource, NotYet
from appliance.core.workspace.snapshot_place import Snapshot, SnapshotPlace
from appliance.core.workspace.snapshot_registry import KeptSnapshot
from appliance.core.workspace.tar import ContentLost

log = logging.getLogger(__name__)

WAIT = 600.0
"""Seconds that a new tip waits for its objects while the tar of the one before is served."""
FIRST_WAIT = 45.0
"""The same without such a tar. Guests wait a little longer than this for a snapshot."""
FIRST_RETRY = 300.0
"""Seconds after which objects that nobody gave are asked for again; then after twice as many, up to `LAST_RETRY`."""
LAST_RETRY = 3600.0
MOST_LOSSES = 3
"""How often in a row a build begins anew because an LFS object was not what it was when it was chosen."""
_SLACK = 0.1
_AT_ONCE = 500


class _Object(NamedTuple):
    """An object of the repository through which it is had."""

    repo: Repo
    pointer: Pointer


@dataclass(eq=False)
class _Tip:
    """What is known of the newest tip of one snapshot."""

    repo: Repo
    directory: Path
    again: Callable[[], None]
    until: float | None = None
    """When the tip has waited long enough, on the monotonic clock; None when it does not wait."""
    fetching: asyncio.Task[None] | None = None
    lacking: list[_Object] = field(default_factory=list)
    """The objects that were not here when it was looked at last."""
    settled: set[_Object] = field(default_factory=set)
    """Those of them that nobody gave, or for which it has waited long enough: no tar waits for these."""
    delay: float = 0.0
    """Seconds before the last retry."""
    timers: dict[str, asyncio.TimerHandle] = field(default_factory=dict)

    def at(self, what: str, seconds: float, act: Callable[[], None]) -> None:
        """Sets the timer of that name, in place of the one before."""
        self.unset(what)
        self.timers[what] = asyncio.get_running_loop().call_later(seconds, act)

    def unset(self, what: str) -> None:
        """Stops a timer."""
        if timer := self.timers.pop(what, None):
            timer.cancel()


class FetchAhead:
    """Which LFS files of each tip are in place. `budget` is what the store may take, in bytes. Of one event loop."""

    def __init__(self, objects: LfsSource, budget: Callable[[], int]) -> None:
        self._objects = objects
        self.budget = budget
        self._tips: dict[Path, _Tip] = {}

    async def build(
        self,
        repo: Repo,
        kept: KeptSnapshot,
        build: Callable[[Choice], Awaitable[Snapshot]],
        again: Callable[[], None],
        same: Snapshot | None = None,
    ) -> Snapshot | None:
        """Builds the tar of a tip; None if it waits for LFS objects.

        Then `again` is called when it should be built. It is called as well when more of what is missing has come.
        `same` is the current tar if only its LFS files are a reason to build it; None as well if they are none.
        Raises GitmirrorError.
        """
        place, served = kept.place, kept.current is not None

        async def choose(trees: Sequence[LfsFiles]) -> Chosen:
            chosen = await self._choose(repo, place, trees, again, served=served)
            if same is not None and chosen.pointers >= same.lfs_pointers:
                raise NotYet("no more LFS files can be in place")
            return chosen

        try:
            built = await build(choose)
        except NotYet:
            kept.waits = not served
            return None
        except ContentLost as error:
            kept.losses += 1
            if kept.losses > MOST_LOSSES:
                raise
            log.warning("%s: building the snapshot of %s again: %s", repo.name, place.branch, error)
            kept.waits = not served
            again()
            return None
        kept.losses = 0
        if built.lfs_pointers:
            log.warning("%s", _complaint(repo, built, self.budget()))
        return built

    async def _choose(
        self, repo: Repo, place: SnapshotPlace, trees: Sequence[LfsFiles], again: Callable[[], None], *, served: bool
    ) -> Chosen:
        """Decides about the LFS files of a tip. `served` says whether an older tar is there for guests.

        Raises NotYet if the tar should wait.
        """
        tip = self._tips.get(place.directory)
        if tip is None:
            self._end_dropped()
            tip = self._tips[place.directory] = _Tip(repo, place.directory, again)
        files = [{path: _Object(tree.repo or repo, each) for path, each in tree.files.items()} for tree in trees]
        fitting = self._fitting(files)
        objects = list(dict.fromkeys(each for tree in fitting for each in tree.values()))
        here = await self._find(objects)
        tip.lacking = [each for each in objects if each not in here]
        tip.settled &= set(tip.lacking)
        if not tip.settled.issuperset(tip.lacking):
            self._wait(tip, served=served)
        tip.until = None
        tip.unset("until")
        in_place = [{path: here[each] for path, each in tree.items() if each in here} for tree in fitting]
        return Chosen(
            [
                Contents(paths, {path: tree[path].pointer.size for path in paths})
                for paths, tree in zip(in_place, files, strict=True)
            ],
            sum(map(len, files)),
            sum(each.pointer.size for tree in files for each in tree.values()),
        )

    def is_outdated(self, place: SnapshotPlace, snapshot: Snapshot) -> bool:
        """Whether a tar of the tip may lack LFS files that can be in place now."""
        if not snapshot.lfs_pointers:
            return False
        tip = self._tips.get(place.directory)
        if tip is None:
            # An earlier `serve` built it.
            return True
        if not tip.lacking:
            # What it lacks did not fit into the budget.
            return snapshot.lfs_bytes <= self.budget()
        return any(self._here(each) for each in tip.lacking)

    def forget(self, repo: Repo) -> None:
        """Ends what is done for a repository."""
        for key in [key for key, tip in self._tips.items() if tip.repo.id == repo.id]:
            self._end(key)

    def _end_dropped(self) -> None:
        """Ends what is done for snapshots that are gone, because guests no longer ask for them."""
        for key in [key for key, tip in self._tips.items() if not tip.directory.exists()]:
            self._end(key)

    def _end(self, key: Path) -> None:
        tip = self._tips.pop(key)
        for timer in tip.timers.values():
            timer.cancel()
        if tip.fetching is not None:
            tip.fetching.cancel()

    def _fitting(self, trees: Iterable[Mapping[str, _Object]]) -> list[dict[str, _Object]]:
        """Those files that fit into the budget together, the first ones first.

        An object counts once for each of its files, because a tree with many of them would fill the disk.
        """
        left, fitting = self.budget(), []
        for tree in trees:
            some = {}
            for path, each in tree.items():
                if each.pointer.size <= left:
                    left -= each.pointer.size
                    some[path] = each
            fitting.append(some)
        return fitting

    async def _find(self, wanted: Sequence[_Object]) -> dict[_Object, Path]:
        """The files of those that are here."""
        found = {}
        for number, each in enumerate(wanted):
            if number % _AT_ONCE == _AT_ONCE - 1:
                # There may be a hundred thousand, and others wait for this event loop.
                await asyncio.sleep(0)
            if (path := self._here(each)) is not None:
                found[each] = path
        return found

    def _here(self, wanted: _Object) -> Path | None:
        path = self._objects.path_if_here(wanted.repo, wanted.pointer.oid)
        try:
            # For a file of another size than its pointer says, git-lfs would make another pointer.
            return path if path is not None and path.stat().st_size == wanted.pointer.size else None
        except OSError:
            return None

    def _wait(self, tip: _Tip, *, served: bool) -> None:
        """Has what is lacking fetched. Raises NotYet while it is worth waiting for."""
        if tip.fetching is None:
            size = format_size(sum(each.pointer.size for each in tip.lacking))
            log.info("%s: fetching %d LFS objects (%s) for a snapshot", tip.repo.name, len(tip.lacking), size)
            self._start(tip)
        now = time.monotonic()
        if tip.until is None:
            seconds = WAIT if served else FIRST_WAIT
            tip.until = now + seconds
            tip.at("until", seconds, tip.again)
        if now + _SLACK < tip.until:
            raise NotYet("the LFS files of the newest commit are being fetched; try again")
        tip.settled.update(tip.lacking)

    def _start(self, tip: _Tip) -> None:
        tip.unset("retry")
        tip.fetching = asyncio.create_task(self._fetch(tip, tip.lacking), name=f"LFS files of {tip.repo.name}")

    async def _fetch(self, tip: _Tip, wanted: Sequence[_Object]) -> None:
        by_repo: dict[Repo, list[Pointer]] = {}
        for each in wanted:
            by_repo.setdefault(each.repo, []).append(each.pointer)
        try:
            await asyncio.gather(*(self._objects.fetch(repo, pointers) for repo, pointers in by_repo.items()))
        except EXPECTED as error:
            log.warning("%s: LFS objects were not fetched: %s", tip.repo.name, error)
        lost = set(wanted) - (await self._find(wanted)).keys()
        tip.fetching = None
        tip.settled |= lost
        has_come = len(lost) < len(wanted)
        if not set(wanted).issuperset(tip.lacking):
            # A newer tip lacks others.
            self._start(tip)
        elif lost:
            tip.delay = min(2 * tip.delay, LAST_RETRY) if tip.delay and not has_come else FIRST_RETRY
            tip.at("retry", tip.delay, lambda: self._retry(tip))
        if has_come or tip.until is not None:
            tip.again()

    def _retry(self, tip: _Tip) -> None:
        if not tip.directory.exists():
            # The snapshot was dropped, because guests no longer ask for it.
            self._end(tip.directory)
        elif tip.fetching is None and tip.lacking:
            self._start(tip)


def has_content(settings: WorkspaceConfig, lfs: FetchAhead | None) -> bool:
    """Whether LFS files are in place in workspaces, as far as their contents can be had."""
    return settings.lfs == CONTENT and lfs is not None and lfs.budget() > 0


def complaints(settings: WorkspaceConfig, lfs: FetchAhead | None, built: Iterable[tuple[Repo, Snapshot]]) -> list[str]:
    """What to tell an operator of LFS files that are not in place."""
    if settings.lfs != CONTENT or lfs is None:
        return []
    if not has_content(settings, lfs):
        return ['[workspace] lfs = "content" has no effect, because [cache] lfs_budget is 0: LFS files are pointers']
    found = [_complaint(repo, snapshot, lfs.budget()) for repo, snapshot in built if snapshot.lfs_pointers]
    return list(dict.fromkeys(found))


def _complaint(repo: Repo, snapshot: Snapshot, budget: int) -> str:
    reason = "the upstream has not given their contents, for which it is asked again"
    if snapshot.lfs_bytes > budget:
        taken, limit = format_size(snapshot.lfs_bytes), format_size(budget)
        reason = f"the contents of all of them take {taken}, and [cache] lfs_budget is only {limit}"
    count = f"{snapshot.lfs_pointers} of {snapshot.lfs_files}"
    return f"{repo.name}: {count} LFS files of {snapshot.branch} are pointers in its workspace: {reason}"
