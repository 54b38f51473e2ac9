"""How much disk space a state directory takes, by purpose."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from appliance.core.layout import Layout
from appliance.core.process.disk import room_of


def storage_document(layout: Layout, mirrors: int, recordings: int) -> dict[str, Any]:
    """`storage` of `status --json`: `{used, budget, by}`, in bytes.

    `mirrors` is the size of all mirrors. `recordings` is the size of what agents recorded: packs, which are in the
    mirrors, and attachments, which are not. The evidence of heals counts as mirrors. `budget` is the size that the
    state directory can grow to: what it takes now plus what is free on its disk.
    """
    packs = max(0, recordings - sum(_length(path) for path in _files(layout.attachments)))
    by = {
        "mirrors": max(0, mirrors - packs) + size_below(layout.evidence) + size_below(layout.healing),
        "answers": size_below(layout.cache),
        "workspaces": size_below(layout.workspaces),
        "disks": size_below(layout.disks),
        "lfs": size_below(layout.lfs),
        "recordings": packs + size_below(layout.attachments),
        "database": sum(_size(Path(f"{layout.database}{end}")) for end in ("", "-wal", "-shm")),
    }
    used, room = sum(by.values()), room_of(layout.state)
    return {"used": used, "budget": used + (room.bytes if room else 0), "by": by}


def size_below(directory: Path) -> int:
    """The bytes of all files below a directory, without those that this user may not read."""
    return sum(_size(path) for path in _files(directory))


def _files(directory: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(directory):
        yield from (Path(parent, name) for name in names)


def _length(path: Path) -> int:
    """The bytes that a file has, or 0 if it is gone."""
    try:
        return path.lstat().st_size
    except OSError:
        return 0


def _size(path: Path) -> int:
    """The bytes that a file takes on the disk, or 0 if it is gone."""
    try:
        return path.lstat().st_blocks * 512
    except OSError:
        return 0
