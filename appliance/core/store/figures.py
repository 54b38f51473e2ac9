"""The history of the node's figures: what was hydrated and refreshed in each slot of time, at falling resolution.

A slot is stored twice, in steps of ten seconds and of a minute, and of each step a number of slots is kept. So nothing
needs to be summed up later, and the table never has more than a few thousand rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from appliance.core.models import WARM_WAYS, Hydration
from appliance.core.store.database import Database, rows
from appliance.core.store.histogram import DurationHistogram

STEP = 10
"""Seconds in the finest slots. Every other step is a multiple of it."""
KEPT = {STEP: 420, 60: 1_500}
"""How many slots of each step are kept: a little over an hour, and a little over a day."""
STORED_WITHIN = 8.0
"""Seconds after the end of a slot by which it is stored; a reader looks no closer to now."""


class FigureSpan(NamedTuple):
    """A span of the history: its `seconds` until now, in slots of `step` seconds, summed up by `told` for programs."""

    seconds: int
    step: int
    told: int


SPANS = {"10m": FigureSpan(600, STEP, STEP), "1h": FigureSpan(3_600, STEP, 60), "1d": FigureSpan(86_400, 60, 600)}
"""The spans that can be asked for."""


@dataclass
class Figures:
    """What happened in a slot. `times` are the times to workspace in seconds, of the hydrations that made one."""

    hydrations: int = 0
    warm: int = 0
    missed: int = 0
    bytes: int = 0
    refreshes: int = 0
    failures: int = 0
    times: DurationHistogram = field(default_factory=DurationHistogram)

    def hydrated(self, fetch: Hydration) -> None:
        """Counts a hydration that ended; of one that was broken off, only the bytes that were sent."""
        self.bytes += fetch.bytes
        if fetch.outcome != "complete":
            return
        self.hydrations += 1
        self.warm += fetch.way in WARM_WAYS
        self.missed += fetch.way == "miss"
        if fetch.makes_workspace:
            self.times.add(fetch.seconds)

    def merge(self, other: Figures) -> None:
        """Adds what happened in another slot."""
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.times.merge(other.times)


_COUNTS = ("hydrations", "warm", "missed", "bytes", "refreshes", "failures")
_COLUMNS = ("step", "at", *_COUNTS, "times")
_EVICT = """DELETE FROM figures WHERE step = :step AND at IN (
    SELECT at FROM figures WHERE step = :step ORDER BY abs(at - :now) DESC
    LIMIT max(0, (SELECT count(*) FROM figures WHERE step = :step) - :kept))"""
_REPLACE = f"INSERT OR REPLACE INTO figures ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' for _ in _COLUMNS)})"


@dataclass(frozen=True)
class FigureSeries:
    """Slots of `step` seconds from Unix second `since` on, oldest first. In a slot that is None, no `serve` ran."""

    since: int
    step: int
    slots: Sequence[Figures | None]

    def total(self) -> Figures:
        """What happened in all of it."""
        return summed(self.slots) or Figures()

    def by(self, step: int) -> FigureSeries:
        """The same in slots of `step` seconds, a multiple of its own; what is left over at the end is a short slot."""
        size = step // self.step
        slots = [summed(self.slots[at : at + size]) for at in range(0, len(self.slots), size)]
        return FigureSeries(self.since, step, slots)

    def starts(self) -> Iterator[tuple[int, Figures | None]]:
        """Each slot with the Unix second at which it begins."""
        return ((self.since + place * self.step, slot) for place, slot in enumerate(self.slots))


def summed(slots: Sequence[Figures | None]) -> Figures | None:
    """Returns what happened in all of the slots; None if no `serve` ran in any of them."""
    found = [slot for slot in slots if slot is not None]
    if not found:
        return None
    whole = Figures()
    for slot in found:
        whole.merge(slot)
    return whole


class FigureStore:
    """The figures in `database`. `clock` gives Unix seconds."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock

    def add(self, slots: Sequence[tuple[int, Figures]]) -> None:
        """Adds slots of STEP seconds, by the Unix second of their start, to what is stored, in one transaction.

        A slot that is there already gets what was counted since: `serve` was restarted within it. Raises StoreError.
        """
        with self._database.writing() as connection:
            for step in KEPT:
                merged: dict[int, Figures] = {}
                for at, figures in slots:
                    merged.setdefault(at - at % step, Figures()).merge(figures)
                for at, figures in merged.items():
                    for row in rows(connection, "SELECT * FROM figures WHERE step = ? AND at = ?", step, at):
                        figures.merge(_figures(row))
                connection.conn.executemany(_REPLACE, [_row(step, at, figures) for at, figures in merged.items()])
            # Those farthest from now go, and only for others that come. By an age alone, one slot with the clock days
            # ahead or behind would delete the whole history.
            now = self._clock()
            connection.conn.executemany(
                _EVICT, [{"step": step, "now": now, "kept": kept} for step, kept in KEPT.items()]
            )

    def read(self, span: FigureSpan, now: float) -> FigureSeries:
        """The slots of a span that ends with the newest one that is surely stored at Unix second `now`.

        Raises StoreError.
        """
        until = int((now - STORED_WITHIN) // span.step) * span.step
        since = until - span.seconds
        with self._database.reading() as connection:
            found = rows(
                connection, "SELECT * FROM figures WHERE step = ? AND at >= ? AND at < ?", span.step, since, until
            )
        by_start = {row["at"]: _figures(row) for row in found}
        return FigureSeries(since, span.step, [by_start.get(at) for at in range(since, until, span.step)])


def _row(step: int, at: int, figures: Figures) -> tuple[int | str, ...]:
    return (step, at, *(getattr(figures, name) for name in _COUNTS), figures.times.encode())


def _figures(row: dict[str, int | str]) -> Figures:
    try:
        return Figures(**{name: int(row[name]) for name in _COUNTS}, times=DurationHistogram.decode(str(row["times"])))
    except (ValueError, TypeError, AttributeError):
        # A damaged row is as good as none, and must not end whoever adds the next one to it.
        return Figures()
