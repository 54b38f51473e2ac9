"""The refreshes of one repository as bars: how long each took, and under each bar its result."""

from __future__ import annotations

from collections.abc import Sequence

from appliance.tui.text import Cell, Piece, cell, count, span, took
from appliance.tui.widgets.lines import Line, Lines

EIGHTHS = " ▁▂▃▄▅▆▇█"
MARKS = {"failed": ("✗", "bad"), "moved": ("▲", "accent")}
LABEL = 9
"""Columns of the scale on the left."""
WIDEST = 4
"""Columns that a bar takes at most, where there are more than refreshes."""


class Plot(Lines):
    """Shows as many of the newest refreshes as there are columns, the last on the right."""

    def draw(self, recent: Sequence[tuple[float, float, str]], now: float) -> None:
        """Shows refreshes, oldest first: Unix second of the start, seconds, result. `now` is a Unix second."""
        height = max(1, self.size.height - 2)
        width = max(1, self.size.width - LABEL - 1)
        shown = recent[-width:]
        if not shown:
            self.show((cell(" No refresh has ended yet.", "dim"), ()))
            return
        top = max(seconds for _, seconds, _ in shown) or 1.0
        wide = min(WIDEST, width // len(shown))
        lines: list[Line] = []
        for row in range(height, 0, -1):
            label = took(top) if row == height else ""
            pieces: list[Piece] = [(f"{label:>{LABEL - 1}} ", "dim")]
            pieces += [(_bar(seconds / top * height, row) * wide, _tone(result)) for _, seconds, result in shown]
            lines.append((tuple(pieces), ()))
        marks: list[Piece] = [(" " * LABEL, "")]
        for _, _, result in shown:
            shape, tone = MARKS.get(result, ("·", "dim"))
            marks.append((f"{shape:^{wide}}", tone))
        lines.append((tuple(marks), ()))
        words: Cell = (
            (" " * LABEL, ""),
            (f"{count(len(shown), 'refresh', 'refreshes')} in the last {span(now - shown[0][0])}: ", "dim"),
            ("▲", "accent"), (" moved  ", "dim"), ("✗", "bad"), (" failed  ", "dim"), ("·", "dim"), (" same", "dim"),
        )  # fmt: skip
        lines.append((words, ()))
        self.show(*lines)


def _bar(level: float, row: int) -> str:
    """Returns one cell of a bar `level` rows high; the lowest row is never empty, so that every refresh is seen."""
    filled = level - (row - 1)
    if filled >= 1:
        return EIGHTHS[8]
    return EIGHTHS[max(1 if row == 1 else 0, int(max(0.0, filled) * 8))]


def _tone(result: str) -> str:
    return {"failed": "bad", "moved": "accent"}.get(result, "dim")
