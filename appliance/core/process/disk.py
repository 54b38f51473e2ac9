"""Space on a disk: how much is free, in bytes and in files, when that is too little to write, and what files take."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from appliance.core.units import format_size

LEAST_ROOM = 2**20
"""Free bytes below which a disk counts as full, because every write must fit completely."""
LOW = 2**30
"""Free bytes below which `status` warns and no new responses are cached."""


@dataclass(frozen=True)
class Room:
    """What is free for this user: bytes, and files (None on file systems that do not count them)."""

    bytes: int
    files: int | None

    @property
    def is_full(self) -> bool:
        """Whether no write can be relied on to succeed."""
        return self.bytes < LEAST_ROOM or self.files == 0

    def complaint(self, path: Path) -> str | None:
        """Returns a warning about the disk that `path` is on, or None."""
        if self.files == 0:
            return f"the disk of {path} is full: it can hold no more files (inodes)"
        if self.is_full:
            return f"the disk of {path} is full: {format_size(self.bytes)} free"
        if self.bytes < LOW:
            return f"the disk of {path} is nearly full: {format_size(self.bytes)} free"
        return None


def room_of(path: Path) -> Room | None:
    """Returns the free space on the disk of `path`, or None when it cannot be determined."""
    try:
        found = os.statvfs(path)
    except OSError:
        return None
    return Room(found.f_bavail * found.f_frsize, found.f_favail if found.f_files else None)


def free_bytes(path: Path) -> float:
    """Returns the free bytes on the disk of `path`, or NaN when unknown: a wrong metric is worse than none."""
    room = room_of(path)
    return math.nan if room is None else room.bytes


def disk_gauges(path: Path) -> Iterator[tuple[str, str, float]]:
    """The metrics of the disk that `path` is on."""
    yield "disk_free_bytes", "Free on the state directory's disk.", free_bytes(path)


def disk_complaint(path: Path) -> str | None:
    """Returns a warning about the disk of `path` that says what to do, or None."""
    room = room_of(path)
    complaint = room.complaint(path) if room else None
    return f"{complaint}; make room, or lower [cache] budget" if complaint else None


@dataclass(frozen=True)
class Space:
    """A file system in bytes: all of it, and what is free for this user."""

    total: int
    free: int


def space_of(path: Path) -> Space | None:
    """Returns the space of the disk of `path`, or None when it cannot be determined."""
    try:
        found = os.statvfs(path)
    except OSError:
        return None
    return Space(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize)


def size_below(directory: Path, rest: Callable[[], None] | None = None) -> int:
    """Returns the bytes that all files below a directory take on the disk. `rest` is called after each directory.

    Passes over what is removed meanwhile (which `Path.rglob` does not), and what this user may not read.
    """
    total = 0
    for parent, _, names in os.walk(directory):
        total += sum(size_on_disk(f"{parent}/{name}") for name in names)
        if rest:
            rest()
    return total


def size_on_disk(path: Path | str) -> int:
    """Returns the bytes that a file takes on the disk, or 0 if it is gone."""
    try:
        return os.lstat(path).st_blocks * 512
    except OSError:
        return 0
