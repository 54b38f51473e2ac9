"""Decides what the workspaces of a branch have: by the settings, the size of the history, and what a guest asks for."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from appliance.core.git.command import GitError
from appliance.core.git.mirror import Mirror
from appliance.core.process.atomic_file import write_atomically
from appliance.core.workspace import history
from appliance.core.workspace.history import History, choose
from appliance.core.workspace.shape import Shape, WantedShape
from appliance.core.workspace.snapshot_place import measured_file

AUTO = "auto"
MEASURE_AGAIN = 0.1
"""The part by which a mirror's size must change before a branch's history is measured again."""
MEASURE_DEADLINE = 300.0


def shape_of(wanted: WantedShape, usual: Shape) -> Shape:
    """The shape of what a guest wants, where `usual` is that of the branch.

    What is sent of a part should be in proportion to what was asked for, so it has old contents only on demand.
    """
    history = wanted.history or usual.history
    if wanted.only and wanted.history is None and history is History.FULL:
        history = History.TREES
    return replace(usual, history=history, only=wanted.only)


@dataclass(frozen=True)
class _Measured:
    mirror: int
    """Bytes of the whole mirror at that time."""
    history: int
    """Bytes of the branch's history, packed."""
    shape: str


async def history_for(setting: str, below: int, mirror: Mirror, directory: Path, tip: str) -> History:
    """The history of the workspaces of a branch whose snapshots are in `directory`.

    `setting` is `auto` or a shape, and `below` the size in bytes from which on `auto` is the tip. Raises OSError.
    """
    if setting != AUTO:
        return History(setting)
    # Everything that the mirror has is more than what a branch has, and quicker to find out.
    size = await asyncio.to_thread(mirror.disk_size)
    if size < min(history.WHOLE_BELOW, below):
        return History.FULL
    measured = await asyncio.to_thread(_load, measured_file(directory))
    before = History(measured.shape) if measured else None
    if measured is None or abs(size - measured.mirror) > MEASURE_AGAIN * measured.mirror:
        measured = _Measured(size, await _measure(mirror, tip, size), "")
    shape = choose(measured.history, below, before)
    if measured.shape != shape:
        kept = _Measured(measured.mirror, measured.history, shape)
        await asyncio.to_thread(write_atomically, measured_file(directory), json.dumps(asdict(kept)))
    return shape


async def _measure(mirror: Mirror, tip: str, most: int) -> int:
    """The bytes that a commit and everything it reaches take in the packs of the mirror."""
    words = ("rev-list", "--objects", "--use-bitmap-index", "--disk-usage", tip)
    try:
        output = await mirror.git.gently().run(*words, cwd=mirror.path, deadline=MEASURE_DEADLINE)
        return int(output.stdout)
    except (GitError, ValueError):
        return most


def _load(file: Path) -> _Measured | None:
    with contextlib.suppress(OSError, ValueError, TypeError):
        measured = _Measured(**json.loads(file.read_text(encoding="utf-8")))
        History(measured.shape)
        return measured
    return None
