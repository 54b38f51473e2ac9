"""Keeps damaged files below the state directory, within a budget, so that an operator can find out what happened."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path

from appliance.core.layout import Layout
from appliance.core.process.disk import size_below
from appliance.core.units import rfc3339

MOST_KEPT = 2
"""How many damaged mirrors of one repository are kept."""
SHARE = 0.1
"""The part of the disk's free space that all evidence may take."""


class Evidence:
    """The files that one heal took out of the mirror `name`. The directory is created when it is needed."""

    def __init__(self, layout: Layout, name: str) -> None:
        self._root = layout.evidence
        self._name = name
        self._directory: Path | None = None

    @property
    def path(self) -> Path | None:
        """The directory, or None if nothing has been kept yet."""
        return self._directory

    def take(self, path: Path, name: str | None = None) -> None:
        """Moves a file or directory here, as `name`. Does nothing if it is gone. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            path.rename(self._free(name or path.name))

    def copy(self, path: Path) -> None:
        """Copies here a file that is about to be replaced, or moves it if it cannot be read. Raises OSError."""
        target = self._free(path.name)
        try:
            shutil.copyfile(path, target)
        except FileNotFoundError:
            return
        except OSError:
            self.take(path)

    def _free(self, name: str) -> Path:
        if self._directory is None:
            stamp = rfc3339(time.time()).replace(":", "").replace("-", "").replace(".", "")
            self._directory = self._root / f"{self._name}.{stamp}"
            self._directory.mkdir(parents=True, exist_ok=True)
        found, number = self._directory / name, 1
        while os.path.lexists(found):
            number += 1
            found = self._directory / f"{name}.{number}"
        return found


def prune(layout: Layout, spared: Path | None = None) -> list[Path]:
    """Removes the oldest evidence until the rest is within the budget; returns what was removed. Never raises.

    Evidence in `spared` is not removed this time, because guests may still be served from it.
    """
    gone: list[Path] = []
    newest_first = sorted(layout.evidence.glob("*/*"), key=lambda path: path.name.rpartition(".")[2], reverse=True)
    kept: dict[str, int] = {}
    room = _room(layout.state)
    for path in newest_first:
        name = str(path.relative_to(layout.evidence)).rpartition(".")[0]
        kept[name] = kept.get(name, 0) + 1
        room -= size_below(path)
        if path != spared and (kept[name] > MOST_KEPT or room < 0):
            shutil.rmtree(path, ignore_errors=True)
            gone.append(path)
    for owner in layout.evidence.glob("*"):
        with contextlib.suppress(OSError):
            owner.rmdir()
    return gone


def _room(state: Path) -> float:
    """How many bytes all evidence together may take."""
    try:
        free = shutil.disk_usage(state).free
    except OSError:
        return 0.0
    return SHARE * free
