"""Which snapshots are kept, of which branches and in which shapes, and which one goes when there are too many."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from appliance.core.errors import GitmirrorError
from appliance.core.health import followed_branch
from appliance.core.layout import Layout
from appliance.core.models import Health, Repo
from appliance.core.process.checked_file import CheckedFile
from appliance.core.workspace.set_aside import PREFIX, SetAside
from appliance.core.workspace.shape import Shape
from appliance.core.workspace.snapshot_place import Snapshot, SnapshotPlace, branch_directory

MOST_EXTRA = 8
"""The most snapshots of one repository that are kept ready besides that of the followed branch in its usual shape.
Beyond that, the least recently requested one is dropped."""
MOST_PARTS = 16
"""The most snapshots of parts of the tree of one repository that are kept besides these."""
MOST_EXTRA_BYTES = 20 * 2**30
"""The most bytes that these take in all repositories, tars and packs together."""
UNASKED = 6 * 3600.0
"""Seconds after which one that nobody requested is dropped, instead of being built for the next tip."""
GONE = "+gone-"
"""Name prefix of a directory that is being removed. No repository's name has a plus."""


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
    was_asked: bool = False
    """Whether a guest asked for it, and `asked_at` is not only when this `serve` began to keep it."""
    error: str | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a build has ended, well or not."""
    asked_by: set[str] = field(default_factory=set)
    """Who requested it: two of them at most, because what matters is whether more than one did."""
    due: bool = False
    """Whether a part of a tree is to be built."""
    in_work: bool = False
    """Whether it is being built now, as a part of a tree."""
    waits: bool = False
    """Whether it is built only when LFS objects have come."""
    losses: int = 0
    """How many builds in a row lost an LFS object."""

    @property
    def owner(self) -> str:
        """Who alone requested it, or nothing if several did."""
        return next(iter(self.asked_by)) if len(self.asked_by) == 1 else ""

    def note(self, asker: str) -> None:
        """Notes a request."""
        self.asked_at, self.was_asked = time.monotonic(), True
        if len(self.asked_by) < 2:
            self.asked_by.add(asker)

    def bytes(self) -> int:
        """About what it takes on disk: the tar, and the packs, which are most of it."""
        return 2 * self.current.size if self.current else 0


@dataclass(eq=False)
class KeptBranch:
    """The snapshots of one branch, which are built one after the other, because they share a working tree."""

    name: str
    directory: Path
    usual: Shape | None = None
    """The shape for guests that ask for none, once there is a snapshot of it."""
    chosen: Shape | None = None
    """What `usual` is to be: another one for a while, when the first build waits or the settings have changed."""
    kept: dict[Shape, KeptSnapshot] = field(default_factory=dict)
    swept: bool = False
    choosing: asyncio.Lock = field(default_factory=asyncio.Lock)
    building: asyncio.Task[None] | None = None
    again: bool = False
    building_parts: asyncio.Task[None] | None = None
    tree: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while one of its snapshots is built."""
    turns: dict[str, int] = field(default_factory=dict)
    """The number of the last turn of each guest for whom parts are built."""

    def is_idle(self) -> bool:
        """Whether nothing of it is being built, except for parts of the tree."""
        return self.building is None or self.building.done()

    def is_at_rest(self) -> bool:
        """Whether nothing of it is being built at all."""
        return self.is_idle() and (self.building_parts is None or self.building_parts.done())

    def parts(self) -> list[KeptSnapshot]:
        """The snapshots of parts of its tree."""
        return [kept for shape, kept in self.kept.items() if shape.only]

    def has_only_parts(self) -> bool:
        """Whether guests asked for nothing but parts of its tree."""
        return bool(self.kept) and all(shape.only for shape in self.kept)

    def next_part(self) -> KeptSnapshot | None:
        """The part that is to be built next, if any: of the guest whose last turn was longest ago."""
        due = [part for part in self.parts() if part.due]
        order = [(self.turns.get(part.owner, 0), part.current is not None, part.asked_at) for part in due]
        return due[order.index(min(order))] if due else None

    def took_turn(self, part: KeptSnapshot) -> None:
        """Notes that a part is built now, so that all other guests with parts that are due come before its own."""
        waiting = {each.owner for each in self.parts() if each.due}
        number = max(self.turns.values(), default=0) + 1
        self.turns = {owner: turn for owner, turn in self.turns.items() if owner in waiting} | {part.owner: number}

    def can_go(self, kept: KeptSnapshot) -> bool:
        """Whether one of its snapshots can be dropped now."""
        if kept.place.shape.only:
            return not kept.in_work and (self.is_idle() or len(self.kept) > 1)
        return self.is_idle()


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
        self.aside = SetAside()

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

    def keep(self, known: KeptRepository, branch: KeptBranch, shape: Shape, asker: str | None = None) -> KeptSnapshot:
        """The place for one more snapshot, for which others may have to go. Raises NoSnapshot if none of them can.

        `asker` is the guest that requests it, if one does.
        """
        if shape not in branch.kept:
            self._make_room(known, branch, shape)
            place = SnapshotPlace(self.directory(known.repo.name), branch.name, shape)
            branch.kept[shape] = KeptSnapshot(place)
        if asker is not None:
            branch.kept[shape].note(asker)
        return branch.kept[shape]

    def sweep(self, known: KeptRepository) -> None:
        """Removes the snapshots that an earlier `serve` left for branches that nobody has requested from this one."""
        kept = {branch.directory.name for branch in known.branches.values()}
        directory = self.directory(known.repo.name)
        for entry in directory.iterdir() if directory.is_dir() else ():
            if entry.name not in kept and not entry.name.startswith(PREFIX):
                _remove(entry)

    def is_set_aside(self, repo: Repo, name: str) -> bool:
        """Whether there was no room for the snapshot of a branch, and no guest has asked for it since."""
        return self.aside.has(self.directory(repo.name) / branch_directory(name))

    def ask_for(self, repo: Repo, name: str) -> None:
        """Lets a branch that was set aside be built again. Raises NoSnapshot if there is still no room for it."""
        directory = self.directory(repo.name) / branch_directory(name)
        if self.aside.is_refused(directory):
            raise NoSnapshot(f"there is no room for the snapshot of {name} now ([storage] budget)")
        self.aside.take_back(directory)

    def is_extra(self, known: KeptRepository, branch: KeptBranch, shape: Shape) -> bool:
        """Whether it is another than the snapshot that every repository has."""
        usual = [each for each in (branch.usual, branch.chosen) if each is not None]
        return bool(shape.only) or branch.name != self.followed(known.repo) or (bool(usual) and shape not in usual)

    def _make_room(self, known: KeptRepository, branch: KeptBranch, shape: Shape) -> None:
        """Drops what can best be missed. Raises NoSnapshot when all of it is being built.

        What several guests request stays longest. Of the others, the guest with the most gives one up, so a guest that
        requests ever more replaces its own. Of equals, what was not requested for the longest time goes.
        """
        if not self.is_extra(known, branch, shape):
            return
        extra = [each for each in self.all() if self.is_extra(each[0], each[1], each[2].place.shape)]
        extra = _first_to_go(extra)
        idle = [each for each in extra if each[1].can_go(each[2])]
        while idle and self._bytes(extra) > MOST_EXTRA_BYTES:
            extra.remove(idle[0])
            self.drop(*idle.pop(0))
        here = [each for each in extra if each[0] is known and bool(each[2].place.shape.only) == bool(shape.only)]
        if len(here) >= (MOST_PARTS if shape.only else MOST_EXTRA):
            if not (mine := [each for each in idle if each in here]):
                raise NoSnapshot(f"{len(here)} other snapshots are being built right now; try again")
            self.drop(*mine[0])

    def _bytes(self, extra: Iterable[_Kept]) -> int:
        """What these take, with the trees of branches that nobody follows, of which a part is less than the whole."""
        trees: dict[Path, int] = {}
        for known, branch, kept in extra:
            if branch.name != self.followed(known.repo):
                trees[branch.directory] = max(trees.get(branch.directory, 0), kept.place.left_out)
        return sum(kept.bytes() for _, _, kept in extra) + sum(trees.values())

    def drop(self, known: KeptRepository, branch: KeptBranch, kept: KeptSnapshot) -> None:
        """Removes a snapshot, and with the last one the branch."""
        _remove(self.detach(known, branch, kept))

    def detach(self, known: KeptRepository, branch: KeptBranch, kept: KeptSnapshot) -> Path:
        """Forgets a snapshot, and with the last one the branch; returns the directory to remove."""
        kept.current = None
        kept.ended.set()
        branch.kept.pop(kept.place.shape, None)
        if branch.kept:
            return kept.place.directory
        if known.branches.get(branch.name) is branch:
            del known.branches[branch.name]
        return branch.directory


_Kept = tuple[KeptRepository, KeptBranch, KeptSnapshot]


def _first_to_go(extra: Iterable[_Kept]) -> list[_Kept]:
    """Snapshots in the order in which they are dropped."""
    ranks: dict[int, int] = {}
    had: Counter[str] = Counter()
    newest_first = sorted(extra, key=lambda each: each[2].asked_at, reverse=True)
    for _, _, kept in newest_first:
        ranks[id(kept)] = had[kept.owner]
        had[kept.owner] += 1

    def order(each: _Kept) -> tuple[bool, int, float]:
        kept = each[2]
        is_shared = len(kept.asked_by) > 1
        return is_shared, 0 if is_shared else -ranks[id(kept)], kept.asked_at

    return sorted(newest_first, key=order)


def _remove(directory: Path) -> None:
    """Renames a directory at once and deletes it in a thread, because a tree may have many files."""
    gone = set_apart(directory)
    if gone.exists():
        asyncio.get_running_loop().run_in_executor(None, lambda: shutil.rmtree(gone, ignore_errors=True))


def set_apart(directory: Path) -> Path:
    """Renames a directory that is about to be deleted, if it is there; returns its new path."""
    gone = directory.with_name(f"{GONE}{directory.name}-{time.monotonic_ns()}")
    with contextlib.suppress(FileNotFoundError):
        directory.rename(gone)
    return gone
