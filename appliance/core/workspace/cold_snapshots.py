"""Snapshots as something that goes when the disk is short, and what builds them again.

A branch whose snapshot went is set aside: its next tips are not built, or the same room would be needed again at once.
The first guest that asks for it has it built. If it went although a guest had just asked for it, there is no room for
it, and for some minutes guests are told so and clone instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from appliance.core.layout import Layout
from appliance.core.models import Repo
from appliance.core.names import is_repo_name
from appliance.core.process.cold import ColdThing, enough, is_open, open_files
from appliance.core.process.disk import size_below
from appliance.core.text import escape
from appliance.core.workspace.snapshot_registry import (
    GONE,
    KeptBranch,
    KeptRepository,
    KeptSnapshot,
    KeptSnapshots,
    set_apart,
)

JUST_ASKED = 5.0
"""Seconds within which a guest that was given the path of a tar has opened it."""

LastUse = Callable[[], Mapping[str, float]]
"""When guests last fetched each repository, in Unix seconds."""


@dataclass(frozen=True)
class _Cold:
    """A snapshot, or a whole branch with its working tree if `kept` is None."""

    thing: ColdThing
    known: KeptRepository
    branch: KeptBranch
    kept: KeptSnapshot | None


class ColdSnapshots:
    """The snapshots that are `kept`, and what is on disk of repositories that `repos` does not have any more.

    `is_on` says whether there are snapshots at all.
    """

    kind = "workspaces"

    def __init__(
        self,
        layout: Layout,
        kept: KeptSnapshots,
        repos: Callable[[], Iterable[Repo]],
        is_on: Callable[[], bool],
        last_use: LastUse,
    ) -> None:
        self._layout = layout
        self._kept = kept
        self._repos = repos
        self._is_on = is_on
        self._last_use = last_use

    async def candidates(self, sizes: Mapping[str, int]) -> list[ColdThing]:
        """What is left of repositories that are not served, then snapshots, the longest unused first."""
        return [*await self._left(sizes), *(cold.thing for cold in await self._found())]

    async def reclaim(self, wanted: int, sizes: Mapping[str, int]) -> list[ColdThing]:
        """Removes them until `wanted` bytes are free."""
        gone: list[ColdThing] = []
        await asyncio.to_thread(_finish, self._layout.workspaces)
        for thing in enough(await self._left(sizes), wanted):
            place = self._layout.workspaces / thing.repo
            if thing.repo not in self._served():
                await asyncio.to_thread(shutil.rmtree, set_apart(place), ignore_errors=True)
                gone.append(thing)
                wanted -= thing.bytes
        for cold in await self._found() if wanted > 0 else ():
            if wanted <= 0:
                break
            if (size := await self._remove(cold)) is not None:
                gone.append(ColdThing(self.kind, cold.thing.repo, cold.thing.what, size, cold.thing.used_at))
                wanted -= size
        return gone

    def _served(self) -> set[str]:
        return {repo.name for repo in self._repos() if repo.enabled} if self._is_on() else set()

    async def _left(self, sizes: Mapping[str, int]) -> list[ColdThing]:
        served = self._served()

        def look() -> list[ColdThing]:
            return [
                ColdThing(self.kind, name, "the snapshots of a repository that is not served", sizes[name], at)
                for name, at in _names_on_disk(self._layout.workspaces)
                if name not in served and sizes.get(name)
            ]

        return sorted(await asyncio.to_thread(look), key=lambda thing: thing.used_at)

    async def _found(self) -> list[_Cold]:
        """The branches of which nothing is being built or sent, each after its less usual shapes."""
        last_use = await asyncio.to_thread(self._last_use)
        opened = open_files()
        cold: list[tuple[float, str, KeptRepository, KeptBranch, KeptSnapshot | None]] = []
        for known in self._kept.repositories():
            for branch in known.branches.values():
                # Those without a tar, too: a build that failed leaves files.
                shapes = list(branch.kept.values())
                if not shapes or not branch.is_at_rest() or any(_is_in_use(kept, opened) for kept in shapes):
                    continue
                what, last = f"the snapshot of {escape(branch.name)}", 0.0
                for kept in shapes:
                    used_at = _used_at(kept, last_use.get(known.repo.name, 0.0))
                    last = max(last, used_at)
                    if len(shapes) > 1 and kept.place.shape != branch.usual:
                        cold.append((used_at, f"{what} ({kept.place.shape.key})", known, branch, kept))
                cold.append((last, what, known, branch, None))
        # One look at the disk for all, in a thread.
        sizes = await asyncio.to_thread(lambda: [_estimate(branch, kept) for _, _, _, branch, kept in cold])
        found = [
            _Cold(ColdThing(self.kind, known.repo.name, what, size, used_at), known, branch, kept)
            for (used_at, what, known, branch, kept), size in zip(cold, sizes, strict=True)
        ]
        return sorted(found, key=lambda each: each.thing.used_at)

    async def _remove(self, cold: _Cold) -> int | None:
        """Removes it and returns its bytes, once they are free; None if it is in use by now, or gone."""
        known, branch, opened = cold.known, cold.branch, open_files()
        current = self._kept.find(known.repo) is known and known.branches.get(branch.name) is branch
        shapes = [cold.kept] if cold.kept else list(branch.kept.values())
        if not current or not branch.is_at_rest() or any(_is_in_use(kept, opened) for kept in shapes):
            return None
        if cold.kept is None:
            asked = [kept.asked_at for kept in shapes if kept.was_asked]
            is_followed = branch.name == self._kept.followed(known.repo)
            self._kept.aside.put(branch.directory, max(asked, default=None), is_followed=is_followed)
        places = {self._kept.detach(known, branch, kept) for kept in shapes}
        # Renamed before anything else runs, so that a guest who asks from now on has another one built.
        apart = [set_apart(place) for place in places]
        return await asyncio.to_thread(_discard, apart)


def _is_in_use(kept: KeptSnapshot, opened: frozenset[tuple[int, int]]) -> bool:
    if time.monotonic() - kept.asked_at < JUST_ASKED and kept.was_asked:
        return True
    return any(is_open(path, opened) for path in kept.place.directory.glob("*.tar*"))


def _used_at(kept: KeptSnapshot, last_use: float) -> float:
    """When a guest asked for it, in this `serve` or before; else when it was built. In Unix seconds."""
    if kept.was_asked:
        return time.time() - (time.monotonic() - kept.asked_at)
    if last_use:
        return last_use
    with contextlib.suppress(OSError):
        return kept.place.description.stat().st_mtime
    return 0.0


def _names_on_disk(workspaces: Path) -> Iterator[tuple[str, float]]:
    """The repositories that have something there, and when that last changed."""
    for path in sorted(workspaces.glob("*/*")):
        name = f"{path.parent.name}/{path.name}"
        if is_repo_name(name) and path.is_dir() and not path.is_symlink():
            with contextlib.suppress(OSError):
                yield name, path.stat().st_mtime


def _finish(workspaces: Path) -> None:
    """Removes what was being removed when an earlier `serve` was killed."""
    for left in workspaces.glob(f"*/{GONE}*"):
        shutil.rmtree(left, ignore_errors=True)


def _discard(directories: Iterable[Path]) -> int:
    size = 0
    for directory in directories:
        size += size_below(directory)
        shutil.rmtree(directory, ignore_errors=True)
    return size


def _estimate(branch: KeptBranch, kept: KeptSnapshot | None) -> int:
    """About what a shape of a branch takes, or all of it.

    A working tree has many files, so it is taken for what the largest tar has beside packs.
    """
    if kept is not None:
        return size_below(kept.place.directory)
    total = tree = 0
    for each in list(branch.kept.values()):
        total += size_below(each.place.directory)
        if each.current is not None:
            tree = max(tree, each.current.size - size_below(each.place.packs))
    return total + tree
