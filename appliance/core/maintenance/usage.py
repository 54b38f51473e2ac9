"""Measures what the state directory takes on its disk, by kind and by repository.

A million files must not be examined every few seconds. So each directory of a repository is walked once, and again only
when something in it was added, replaced or removed, which the times of its upper directories show, or after an hour.
The walk rests after each piece of work, so that it takes at most a fifth of one processor.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from appliance.core.layout import Layout
from appliance.core.names import is_repo_name
from appliance.core.process.disk import size_below, size_on_disk

MIRRORS, ANSWERS, WORKSPACES, DISKS = "mirrors", "answers", "workspaces", "disks"
LFS, RECORDINGS, DATABASE = "lfs", "recordings", "database"
KINDS = (MIRRORS, ANSWERS, WORKSPACES, DISKS, LFS, RECORDINGS, DATABASE)
"""The keys of `storage.by` in `status --json`."""

WALK_AGAIN = 3600.0
"""Seconds after which a directory is walked again even if nothing seems to have changed in it."""
_DEPTH = 2
"""How deep the directories are whose times show a change: builds, refreshes and pushes all rename a file into one of
them."""
_PIECE = 0.005
"""Seconds of walking between two rests."""
_REST = 4.0
"""A paced walk rests this many times as long as it has worked."""


@dataclass(frozen=True)
class Usage:
    """Bytes on the disk by kind, then by repository; "" stands for no repository. `at` is in Unix seconds.

    `recordings` are attachments alone: recorded packs are in the mirrors, and only the database knows which.
    """

    at: float = 0.0
    by: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self.of(kind) for kind in KINDS)

    def of(self, kind: str) -> int:
        """The bytes of one kind."""
        return sum(self.by.get(kind, {}).values())


@dataclass
class _Walked:
    seen: tuple[int, ...]
    at: float
    bytes: int


class UsageMeter:
    """Measures one state directory, and reuses what is unchanged since the last time. Threads may share it."""

    def __init__(self, layout: Layout, clock: Callable[[], float] = time.time) -> None:
        self._layout = layout
        self._clock = clock
        self._walked: dict[Path, _Walked] = {}
        self._met: set[Path] = set()
        """The directories of this measurement, so that what is gone is forgotten."""
        self._one_at_a_time = threading.Lock()

    def measure(self, *, paced: bool = False) -> Usage:
        """What the state directory takes now. `paced` rests between pieces of work, for a process that also serves."""
        with self._one_at_a_time:
            pace = _Pace() if paced else None
            self._met.clear()
            by = {kind: dict(self._of_kind(kind, pace)) for kind in KINDS}
            self._walked = {directory: walked for directory, walked in self._walked.items() if directory in self._met}
            return Usage(self._clock(), by)

    def _of_kind(self, kind: str, pace: _Pace | None) -> Counter[str]:
        layout, found = self._layout, Counter[str]()
        if kind == DATABASE:
            found[""] = sum(size_on_disk(Path(f"{layout.database}{end}")) for end in ("", "-wal", "-shm"))
        elif kind == ANSWERS:
            found[""] = size_below(layout.cache)
        else:
            roots = {
                MIRRORS: (layout.mirrors, layout.state / "incoming", layout.healing, layout.evidence),
                WORKSPACES: (layout.workspaces,),
                DISKS: (layout.disks,),
                LFS: (layout.lfs,),
                RECORDINGS: (layout.attachments,),
            }[kind]
            for root in roots:
                for directory, repo in _by_repository(root):
                    found[repo] += self._size(directory, pace)
        return found

    def _size(self, directory: Path, pace: _Pace | None) -> int:
        """The bytes below a directory, as last walked if nothing has changed since."""
        self._met.add(directory)
        seen, known = tuple(_times(str(directory), _DEPTH)), self._walked.get(directory)
        if pace:
            pace.rest()
        if known is not None and known.seen == seen and self._clock() - known.at < WALK_AGAIN:
            return known.bytes
        # The times are from before the walk, so that the next walk sees a change during this one.
        walked = _Walked(seen, self._clock(), size_below(directory, pace.rest if pace else None))
        self._walked[directory] = walked
        return walked.bytes


class _Pace:
    def __init__(self) -> None:
        self._since = time.thread_time()

    def rest(self) -> None:
        """Rests if enough work was done since the last time."""
        worked = time.thread_time() - self._since
        if worked >= _PIECE:
            time.sleep(worked * _REST)
            self._since = time.thread_time()


def _by_repository(root: Path) -> Iterator[tuple[Path, str]]:
    """The directories two levels below `root`, with the repository that each is of."""
    for owner in _directories(str(root)):
        for entry in _directories(owner.path):
            name = entry.name.removesuffix(".git")
            # A mirror's evidence is called after it, with a time.
            repo = f"{owner.name}/{name if root.name != 'evidence' else name.rpartition('.')[0]}"
            yield Path(entry.path), repo if is_repo_name(repo) else ""


def _directories(path: str) -> list[os.DirEntry[str]]:
    found = []
    with contextlib.suppress(OSError), os.scandir(path) as entries:
        found = [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
    return sorted(found, key=lambda entry: entry.name)


def _times(path: str, depth: int) -> Iterator[int]:
    """When something was last added to or removed from a directory and those below it, to a depth."""
    with contextlib.suppress(OSError):
        yield os.stat(path, follow_symlinks=False).st_mtime_ns
    if depth:
        for entry in _directories(path):
            yield from _times(entry.path, depth - 1)
