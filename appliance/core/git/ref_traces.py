"""Detects that a ref of a repository may have changed, from the files that every such change touches.

git writes a loose ref by renaming a file into its directory, and packed-refs and HEAD by renaming a file over the old
one; it removes them in the same way. So every change of a ref changes the mtime of a directory below `refs/`, or puts
another file at `packed-refs` or `HEAD`. Checking these costs a hundredth of running git. (git 2.39 does not know the
`reftable` format, and mirrors are created without it.)
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

SETTLED = 1_000_000_000
"""The minimum age of the youngest trace, in nanoseconds. The kernel's clock for files ticks every few milliseconds, so
a change just before the traces are taken may have the same time as another just after."""

TRUSTED_FOR = 600.0
"""The most seconds that traces are trusted. After that, a ref file damaged in place (not by git) is read again."""

MOST_DIRECTORIES = 256
"""With more directories of refs than this, git is run instead, because checking them all costs as much."""

Status = tuple[int, int, int, int] | None


@dataclass(frozen=True)
class RefTraces:
    """The state of each path: inode, size, mtime and ctime in nanoseconds, or None if the path did not exist.

    `taken_at` is in monotonic seconds.
    """

    seen: tuple[tuple[str, Status], ...]
    taken_at: float

    def hold(self) -> bool:
        """Whether nothing has changed since. A new directory changes its parent's mtime, so known ones suffice."""
        if time.monotonic() - self.taken_at > TRUSTED_FOR:
            return False
        return all(_status(path) == status for path, status in self.seen)


def take_traces(repository: Path, now: float, *below: str) -> RefTraces | None:
    """The traces at Unix time `now`, or None if one is too young to reveal a later change or there are too many.

    Covers all refs, or those `below` some directories. Take them before reading the refs, so that a change during the
    read counts as a change.
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
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
