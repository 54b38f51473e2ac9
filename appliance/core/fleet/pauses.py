"""How long what failed is left alone."""

from __future__ import annotations

import time
from typing import Generic, TypeVar

T = TypeVar("T")

PAUSES = (1.0, 60.0)
"""Seconds until the fleet is asked again after it did not take something: at first, and at most."""
ASIDE = (60.0, 3600.0)
"""Seconds until something that cannot go out is tried again: at first, and at most."""


class Waits(Generic[T]):
    """Until when things are left alone, longer each time: `bounds` are the first and the longest, in seconds."""

    def __init__(self, bounds: tuple[float, float]) -> None:
        self._bounds = bounds
        self._until: dict[T, tuple[float, float, str]] = {}

    def add(self, thing: T, reason: str) -> None:
        """Leaves a thing alone, for twice as long as before."""
        first, most = self._bounds
        pause = min(most, self._until[thing][1] * 2) if thing in self._until else first
        self._until[thing] = time.monotonic() + pause, pause, reason

    def has(self, thing: T) -> bool:
        """Whether it is to be left alone now."""
        return thing in self._until and time.monotonic() < self._until[thing][0]

    def end(self, thing: T) -> None:
        """It went well, or is gone."""
        self._until.pop(thing, None)

    def things(self) -> list[T]:
        """What is left alone, or was at its last try."""
        return list(self._until)

    def reasons(self) -> list[str]:
        """Why each of `things` is, in the same order."""
        return [reason for _, _, reason in self._until.values()]
