"""The columns of a list: what they show of a row, and how they share the width of the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from appliance.tui.text import Cell

Row = TypeVar("Row")

GAP = 2
"""The blank columns between two columns."""
EXTRA = 5
"""Columns of at least this rank are shown only where those of rank 0, which say what a row is, have all they want."""


@dataclass(frozen=True)
class Column(Generic[Row]):
    """A column of at least `least` characters, up to `most` if there is room, and beyond if it `grows`.

    Where not all columns fit, those with the highest `rank` are left out first, and those of rank `EXTRA` or more as
    soon as one of rank 0 would have less than its `most`. A text that is too long loses its end,
    or its beginning if the `tail` is more informative, as in a path. The `short` title is a shorter word that stands
    where the title has no room. `order` gives what rows are sorted by when the heading is clicked, the least first.
    """

    title: str
    render: Callable[[Row], Cell]
    least: int
    rank: int
    most: int = 0
    grows: bool = False
    right: bool = False
    tail: bool = False
    short: str = ""
    order: Callable[[Row], Any] | None = None

    @property
    def widest(self) -> int:
        """The columns that it takes while there is room: no more than `most`, but enough for its whole title."""
        return max(self.most, len(self.title)) if self.short else self.most

    def heading(self, width: int) -> str:
        """Its title, or the short one where that has no room."""
        return self.short if self.short and len(self.title) > width else self.title


class Sorting(Generic[Row]):
    """The order that clicks on headings ask for: by a column, the other way round, and again as the rows were given."""

    def __init__(self) -> None:
        self._column: Column[Row] | None = None
        self._is_down = False

    @property
    def title(self) -> str:
        """The title of the column in small letters; empty for the order in which the rows were given."""
        return self._column.title.lower() if self._column else ""

    def clear(self) -> None:
        """Goes back to the order in which the rows were given."""
        self._column = None

    def click(self, column: Column[Row]) -> bool:
        """Takes a click on a heading, and returns whether rows can be sorted by that column."""
        if column.order is None:
            return False
        if self._column is not column:
            self._column, self._is_down = column, False
        elif self._is_down:
            self._column = None
        else:
            self._is_down = True
        return True

    def apply(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Returns the rows in this order."""
        if self._column is None or self._column.order is None:
            return rows
        return sorted(rows, key=self._column.order, reverse=self._is_down)

    def arrow(self, column: Column[Row]) -> str:
        """Returns what stands beside the heading of the column."""
        return " " if self._column is not column else "▼" if self._is_down else "▲"


def lay_out(columns: Sequence[Column[Any]], width: int) -> list[tuple[int, int, int]]:
    """Returns index, x and width of each column that is shown. Columns of rank 0 always are."""
    chosen = list(range(len(columns)))
    while _needed([columns[n] for n in chosen]) > width:
        rank = max(columns[n].rank for n in chosen)
        if rank == 0:
            break
        chosen.remove(max(n for n in chosen if columns[n].rank == rank))
    widths = {n: columns[n].least for n in chosen}
    room = width - sum(widths.values()) - GAP * (len(chosen) - 1)
    for n in sorted(chosen, key=lambda n: columns[n].rank):
        more = max(0, min(room, columns[n].widest - widths[n]))
        widths[n] += more
        room -= more
    growing = [n for n in chosen if columns[n].grows]
    for place, n in enumerate(growing):
        share = max(0, room) // (len(growing) - place)
        widths[n] += share
        room -= share
    if room < 0 and chosen:
        widths[chosen[0]] = max(1, widths[chosen[0]] + room)
    laid, x = [], 0
    for n in chosen:
        laid.append((n, x, widths[n]))
        x += widths[n] + GAP
    return laid


def _needed(columns: Sequence[Column[Any]]) -> int:
    """The width that is needed to show these."""
    has_extra = any(column.rank >= EXTRA for column in columns)
    wanted = (max(each.least, each.widest) if has_extra and each.rank == 0 else each.least for each in columns)
    return sum(width + GAP for width in wanted) - GAP
