"""Notices that the wall clock was set."""

from __future__ import annotations

import time

SMALLEST_STEP = 1.0
"""Seconds that the wall clock may drift from the steady clock between two calls before it counts as set."""


class SteadyClock:
    """Compares the wall clock with a clock that is never set and that keeps counting while the machine sleeps."""

    def __init__(self) -> None:
        self._offset = self._now()

    def step(self) -> float:
        """By how many seconds the wall clock was set since the last call; 0 for mere drift."""
        before, self._offset = self._offset, self._now()
        step = self._offset - before
        return step if abs(step) >= SMALLEST_STEP else 0.0

    @staticmethod
    def _now() -> float:
        return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
