"""Counts what the node does, ten seconds at a time, for the plots of the live view and `/v1/figures`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from appliance.core.events.facts import FetchEnded, RefreshEnded
from appliance.core.store.figures import STEP, Figures, FigureStore
from appliance.core.store.write_behind import WriteBehind

PACE = 5.0
"""Seconds that an ended slot waits to be stored. A kill loses at most this and the slot that had not ended."""


class FigureSampler:
    """Counts events into the current slot, and has `store` keep each slot that has ended.

    Counting takes a few microseconds and never fails. While the database cannot be written, ended slots wait in memory.
    `clock` gives Unix seconds.
    """

    def __init__(self, store: FigureStore, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._queue: WriteBehind[tuple[int, Figures]] = WriteBehind("slots of figures", store.add, PACE)
        self._start = self._slot_now()
        self._figures = Figures()

    def hydrated(self, event: FetchEnded) -> None:
        """Counts a hydration that ended."""
        self._current().hydrated(event.fetch)

    def refreshed(self, event: RefreshEnded) -> None:
        """Counts a refresh that ended."""
        current = self._current()
        current.refreshes += 1
        current.failures += event.outcome.error is not None

    async def run(self) -> None:
        """Ends each slot in time, even one in which nothing happened, and stores it; runs until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._queue.run(), name="store figures")
            while True:
                await asyncio.sleep(STEP - self._clock() % STEP)
                self._current()

    async def write(self) -> None:
        """Stores all that was counted so far. An error of the database is logged."""
        self._end()
        await self._queue.write()

    def _slot_now(self) -> int:
        return int(self._clock() // STEP) * STEP

    def _current(self) -> Figures:
        if self._slot_now() != self._start:
            self._end()
        return self._figures

    def _end(self) -> None:
        self._queue.add((self._start, self._figures))
        self._start, self._figures = self._slot_now(), Figures()
