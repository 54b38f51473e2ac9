"""How much room a file system has, in bytes and in files, and when that is too little to write anything."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from appliance.core.units import format_size

LEAST_ROOM = 2**20
"""Free bytes below which a disk counts as full: what is to be written must be written whole."""
LOW = 2**30
"""Free bytes below which `status` warns; no new answers are kept for guests then."""


@dataclass(frozen=True)
class Room:
    """What is free for this user: bytes, and files, None on file systems that do not count them."""

    bytes: int
    files: int | None

    @property
    def is_full(self) -> bool:
        """Whether nothing can be relied on to be written."""
        return self.bytes < LEAST_ROOM or self.files == 0

    def complaint(self, path: Path) -> str | None:
        """What is to be said of the disk that `path` is on, if anything."""
        if self.files == 0:
            return f"the disk of {path} is full: it can hold no more files (inodes)"
        if self.is_full:
            return f"the disk of {path} is full: {format_size(self.bytes)} free"
        if self.bytes < LOW:
            return f"the disk of {path} is nearly full: {format_size(self.bytes)} free"
        return None


def room_of(path: Path) -> Room | None:
    """The room on the disk of `path`; None when that cannot be told."""
    try:
        found = os.statvfs(path)
    except OSError:
        return None
    return Room(found.f_bavail * found.f_frsize, found.f_favail if found.f_files else None)


def free_bytes(path: Path) -> float:
    """Free bytes on the disk of `path`, NaN when that cannot be told: a metric that is wrong is worse than none."""
    room = room_of(path)
    return math.nan if room is None else room.bytes


def disk_gauges(path: Path) -> Iterator[tuple[str, str, float]]:
    """What /metrics tells of the disk that `path` is on."""
    yield "disk_free_bytes", "Free on the state directory's disk.", free_bytes(path)


def disk_complaint(path: Path) -> str | None:
    """A warning about the disk of `path`, with what to do, or None."""
    room = room_of(path)
    said = room.complaint(path) if room else None
    return f"{said}; make room, or lower [cache] budget" if said else None
