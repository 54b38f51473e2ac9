"""Whether a ref of a repository may have changed since a moment, told from the files that every such change touches.

git writes a loose ref by renaming a file into its directory, packed refs and HEAD by renaming one into their place, and
removes them likewise. So a ref that changed always left another mtime on a directory below `refs/`, or another file at
`packed-refs` or `HEAD`. Looking at these is a hundredth of asking git. (The `reftable` format is unknown to git 2.39,
and a mirror is made without it.)
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

SETTLED = 1_000_000_000
"""Nanoseconds that the youngest trace must be old before it is taken: the kernel's clock for files ticks every few
milliseconds, and a change before and one after the look in the same tick cannot be told apart."""

TRUSTED_FOR = 600.0
"""Seconds that traces are trusted at most: a ref's file that was damaged in place, by no git, is read again then."""

MOST_DIRECTORIES = 256
"""Directories of refs past which git is asked instead: that many looks cost as much."""

Status = tuple[int, int, int, int] | None


@dataclass(frozen=True)
class RefTraces:
    """What was at each path: inode, size, mtime and ctime in nanoseconds; None when nothing was.

    `taken_at` is in monotonic seconds.
    """

    seen: tuple[tuple[str, Status], ...]
    taken_at: float

    def hold(self) -> bool:
        """Whether nothing changed since. A new directory moves its parent's mtime, so the known ones suffice."""
        if time.monotonic() - self.taken_at > TRUSTED_FOR:
            return False
        return all(_status(path) == status for path, status in self.seen)


def take_traces(repository: Path, now: float, *below: str) -> RefTraces | None:
    """The traces at Unix time `now`; None when one is too young to tell a later change apart, or there are too many.

    Of all refs, or of those `below` some directories. To be taken before the refs are read: what changes while they
    are is seen as changed.
    """
    paths = [str(repository / "HEAD"), str(repository / "packed-refs")]
    for top in below or ("refs",):
        for directory, _, _ in os.walk(repository / top):
            paths.append(directory)
            if len(paths) > MOST_DIRECTORIES:
                return None
    seen = tuple((path, _status(path)) for path in paths)
    youngest = now * 1e9 - SETTLED
    if any(status is not None and max(status[2:]) > youngest for _, status in seen):
        return None
    return RefTraces(seen, time.monotonic())


def _status(path: str) -> Status:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
