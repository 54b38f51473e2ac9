"""Knowing that a mirror's refs are as they were, without asking git: two processes less in each idle refresh."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

QUIET = 2.0
"""Seconds that nothing may have changed for: two changes in one tick of the file system's clock leave one trace."""
MOST_FILES = 500
"""Loose refs and directories past which a mirror is not remembered: looking at them all costs more than git does."""

Trace = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True)
class _Known:
    trace: Trace
    digest: bytes


class RefMemory:
    """For each mirror what its branches and tags were, as a digest, and the trace that the disk showed then.

    Whoever changes a ref, also by hand, changes the trace: git writes refs by renaming files.
    """

    def __init__(self) -> None:
        self._known: dict[Path, _Known] = {}

    def holds(self, mirror: Path, refs: Mapping[str, str]) -> bool:
        """Whether the mirror is known to have just these branches and tags, each at this object."""
        known = self._known.get(mirror)
        return known is not None and known.digest == _digest(refs) and known.trace == trace_of(mirror)

    def learn(self, mirror: Path, trace: Trace | None, refs: Mapping[str, str]) -> None:
        """The mirror has `refs`; `trace` was taken before they were read. Forgotten when the trace is too young."""
        self._known.pop(mirror, None)
        if trace is not None and _is_quiet(trace, time.time()):
            self._known[mirror] = _Known(trace, _digest(refs))


def trace_of(mirror: Path) -> Trace | None:
    """Every file and directory that holds branches and tags, with times, inode and size; None for too many."""
    found: list[tuple[str, int, int, int]] = []
    waiting = [f"{mirror}/packed-refs", f"{mirror}/refs/heads", f"{mirror}/refs/tags"]
    while waiting:
        path = waiting.pop()
        try:
            status = os.stat(path)
        except OSError:
            continue
        found.append((path, max(status.st_mtime_ns, status.st_ctime_ns), status.st_ino, status.st_size))
        if len(found) + len(waiting) > MOST_FILES:
            return None
        if status.st_mode & 0o170000 == 0o040000:
            try:
                waiting += sorted(f"{path}/{name}" for name in os.listdir(path))
            except OSError:
                return None
    return tuple(found)


def _is_quiet(trace: Trace, now: float) -> bool:
    """A time in the future, of a clock that was set back, is never quiet."""
    return all(changed / 1e9 < now - QUIET for _, changed, _, _ in trace)


def _digest(refs: Mapping[str, str]) -> bytes:
    text = "\n".join(f"{oid} {ref}" for ref, oid in sorted(refs.items()))
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).digest()
