"""Branches whose snapshot was removed for want of room, so that nothing builds it until a guest asks."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

PREFIX = ".aside-"
"""Of the file that a branch set aside has in the directory of its repository, so that a restart builds it no sooner."""
SOON = 600.0
"""Seconds. What goes within this time after a guest asked for it is not built again for as long."""


class SetAside:
    """Knows the branches. `clock` gives monotonic seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._refused_until: dict[Path, float] = {}

    def put(self, directory: Path, asked_at: float | None, *, is_followed: bool) -> None:
        """Sets the branch with this directory aside. A guest last asked for it at `asked_at`, if any did.

        Only the followed branch gets a file, because no other is built before a guest asks.
        """
        if is_followed:
            with contextlib.suppress(OSError):
                _marker(directory).touch()
        if asked_at is not None and self._clock() - asked_at < SOON:
            self._refused_until[directory] = self._clock() + SOON

    def has(self, directory: Path) -> bool:
        """Whether the branch with this directory is set aside."""
        return os.path.exists(_marker(directory))

    def is_refused(self, directory: Path) -> bool:
        """Whether it went although guests asked for it, so recently that building it again would be in vain."""
        return self._clock() < self._refused_until.get(directory, 0.0)

    def take_back(self, directory: Path) -> None:
        """Forgets that a branch was set aside, because a guest asks for it."""
        self._refused_until.pop(directory, None)
        with contextlib.suppress(OSError):
            _marker(directory).unlink(missing_ok=True)


def _marker(directory: Path) -> Path:
    return directory.with_name(PREFIX + directory.name)
