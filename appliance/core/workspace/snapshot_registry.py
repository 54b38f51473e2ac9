"""Which snapshots are kept, of which branches and in which shapes, and which one goes when there are too many."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from appliance.core.errors import GitmirrorError
from appliance.core.health import followed_branch
from appliance.core.layout import Layout
from appliance.core.models import Health, Repo
from appliance.core.process.checked_file import CheckedFile
from appliance.core.workspace.shape import Shape
from appliance.core.workspace.snapshot_place import Snapshot, SnapshotPlace, branch_directory

MOST_EXTRA = 8
"""The most snapshots of one repository that are kept ready besides that of the followed branch in its usual shape.
Beyond that, the least recently requested one is dropped."""
MOST_EXTRA_BYTES = 20 * 2**30
"""The most bytes that these take in all repositories, tars and packs together."""
UNASKED = 6 * 3600.0
"""Seconds after which one that nobody requested is dropped, instead of being built for the next tip."""


class NoSnapshot(GitmirrorError):
    """There is no snapshot; the message says why."""


@dataclass(eq=False)
class KeptSnapshot:
    """The snapshot of one branch in one shape."""

    place: SnapshotPlace
    looked: bool = False
    """Whether the disk was checked for a snapshot that an earlier `serve` left."""
    current: Snapshot | None = None
    tar: CheckedFile | None = None
    """The tar of `current`."""
    asked_at: float = field(default_factory=time.monotonic)
    error: str | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a build has ended, well or not."""
    waits: bool = False
    """Whether it is built only when LFS objects have come."""
    losses: int = 0
    """How many builds in a row lost an LFS object."""

    def bytes(self) -> int:
        """About what it takes on disk: the tar, and the packs, which are most of it."""
        return 2 * self.current.size if self.current else 0


@dataclass(eq=False)
class KeptBranch:
    """The snapshots of one branch, which are built one after the other, because they share a working tree."""

    name: str
    directory: Path
    usual: Shape | None = None
    """The shape for guests that ask for none, once it is known."""
    kept: dict[Shape, KeptSnapshot] = field(default_factory=dict)
    swept: bool = False
    choosing: asyncio.Lock = field(default_factory=asyncio.Lock)
    building: asyncio.Task[None] | None = None
    again: bool = False

    def is_idle(self) -> bool:
        """Whether nothing of it is being built."""
        return self.building is None or self.building.done()


@dataclass
class KeptRepository:
    """The branches of one repository. `swept` says whether what an earlier `serve` left was removed."""

    repo: Repo
    swept: bool = False
    branches: dict[str, KeptBranch] = field(default_factory=dict)


class KeptSnapshots:
    """What is kept for each repository. `health(id)` gives a mirror's health, which includes its default branch."""

    def __init__(self, layout: Layout, health: Callable[[int], Health]) -> None:
        self._layout = layout
        self._health = health
        self._known: dict[int, KeptRepository] = {}

    def followed(self, repo: Repo) -> str | None:
        """The branch of a repository that every guest gets who asks for none."""
        return followed_branch(repo, self._health(repo.id))

    def directory(self, name: str) -> Path:
        """Where the snapshots of the repository `name` are."""
        return self._layout.workspaces / name

    def find(self, repo: Repo) -> KeptRepository | None:
        """What is kept of a repository, if anything is."""
        return self._known.get(repo.id)

    def forget(self, repo: Repo) -> KeptRepository | None:
        """Keeps nothing of it any more; the files stay."""
        return self._known.pop(repo.id, None)

    def repositories(self) -> list[KeptRepository]:
        """All of them."""
        return list(self._known.values())

    def all(self) -> Iterator[tuple[KeptRepository, KeptBranch, KeptSnapshot]]:
        """Every snapshot, with its branch and its repository."""
        for known in self._known.values():
            for branch in known.branches.values():
                for kept in branch.kept.values():
                    yield known, branch, kept

    def repository(self, repo: Repo) -> KeptRepository:
        """What is kept of a repository, from now on."""
        return self._known.setdefault(repo.id, KeptRepository(repo))

    def branch(self, known: KeptRepository, name: str) -> KeptBranch:
        """The branch of that name, from now on."""
        if name not in known.branches:
            directory = self.directory(known.repo.name) / branch_directory(name)
            known.branches[name] = KeptBranch(name, directory)
        return known.branches[name]

    def keep(self, known: KeptRepository, branch: KeptBranch, shape: Shape) -> KeptSnapshot:
        """The place for one more snapshot, for which others may have to go. Raises NoSnapshot if none of them can."""
        if shape not in branch.kept:
            self._make_room(known, branch, shape)
            place = SnapshotPlace(self.directory(known.repo.name), branch.name, shape)
            branch.kept[shape] = KeptSnapshot(place)
        return branch.kept[shape]

    def sweep(self, known: KeptRepository) -> None:
        """Removes the snapshots that an earlier `serve` left for branches that nobody has requested from this one."""
        kept = {branch.directory.name for branch in known.branches.values()}
        directory = self.directory(known.repo.name)
        for entry in directory.iterdir() if directory.is_dir() else ():
            if entry.name not in kept:
                _remove(entry)

    def is_extra(self, known: KeptRepository, branch: KeptBranch, shape: Shape) -> bool:
        """Whether it is another than the snapshot that every repository has."""
        return branch.name != self.followed(known.repo) or shape != (branch.usual or shape)

    def _make_room(self, known: KeptRepository, branch: KeptBranch, shape: Shape) -> None:
        """Drops what was not requested for the longest time. Raises NoSnapshot when all of it is being built."""
        if not self.is_extra(known, branch, shape):
            return
        extra = [each for each in self.all() if self.is_extra(each[0], each[1], each[2].place.shape)]
        extra.sort(key=lambda each: each[2].asked_at)
        idle = [each for each in extra if each[1].is_idle()]
        while idle and sum(kept.bytes() for _, _, kept in extra) > MOST_EXTRA_BYTES:
            extra.remove(idle[0])
            self.drop(*idle.pop(0))
        here = [each for each in extra if each[0] is known]
        if len(here) >= MOST_EXTRA:
            if not (mine := [each for each in idle if each[0] is known]):
                raise NoSnapshot(f"{len(here)} other snapshots are being built right now; try again")
            self.drop(*mine[0])

    def drop(self, known: KeptRepository, branch: KeptBranch, kept: KeptSnapshot) -> None:
        """Removes a snapshot, and with the last one the branch."""
        kept.current = None
        kept.ended.set()
        branch.kept.pop(kept.place.shape, None)
        if branch.kept:
            _remove(kept.place.directory)
            return
        if known.branches.get(branch.name) is branch:
            del known.branches[branch.name]
        _remove(branch.directory)


def _remove(directory: Path) -> None:
    """Renames a directory at once and deletes it in a thread, because a tree may have many files."""
    gone = directory.with_name(f".gone-{directory.name}-{time.monotonic_ns()}")
    with contextlib.suppress(FileNotFoundError):
        directory.rename(gone)
        asyncio.get_running_loop().run_in_executor(None, lambda: shutil.rmtree(gone, ignore_errors=True))
