"""What may be removed from the state directory when its disk is short, and what is being sent just now."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ColdThing:
    """Something that can be made or fetched again: `bytes` on the disk, of the repository `repo` ("" for none).

    `kind` is a key of `storage.by` in `status --json`, `what` names it for the log, and `used_at` is when it was last
    used, in Unix seconds.
    """

    kind: str
    repo: str
    what: str
    bytes: int
    used_at: float


class Reclaimable(Protocol):
    """Things of one kind, which go the longest unused first. What is in use is neither listed nor removed."""

    @property
    def kind(self) -> str:
        """The key of the kind in `storage.by`."""
        ...

    async def candidates(self, sizes: Mapping[str, int]) -> list[ColdThing]:
        """What can go now, in the order in which it goes. Raises OSError, GitmirrorError.

        `sizes` are the bytes of this kind by repository when they were last measured.
        """
        ...

    async def reclaim(self, wanted: int, sizes: Mapping[str, int]) -> list[ColdThing]:
        """Removes things until `wanted` bytes are free, or there are none left; returns what went, once it is gone.

        Raises OSError, GitmirrorError.
        """
        ...


def enough(things: Sequence[ColdThing], wanted: int) -> list[ColdThing]:
    """The first of `things` that have `wanted` bytes together, or all of them."""
    chosen, found = [], 0
    for thing in things:
        if found >= wanted:
            break
        chosen.append(thing)
        found += thing.bytes
    return chosen


def open_files() -> frozenset[tuple[int, int]]:
    """Device and inode of every file that this process has open. What it sends to a guest is among them."""
    found = set()
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                status = os.fstat(int(name))
                found.add((status.st_dev, status.st_ino))
    return frozenset(found)


def is_open(path: Path, opened: frozenset[tuple[int, int]]) -> bool:
    """Whether a file is one of those that `open_files` found."""
    try:
        status = path.stat()
    except OSError:
        return False
    return (status.st_dev, status.st_ino) in opened
