"""Charts over time, drawn as lines of text: bars of block characters, a scale on the left, the time below. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len

from appliance.tui.text import Piece, span
from appliance.tui.widgets.lines import Line

EIGHTHS = " ▁▂▃▄▅▆▇█"
SHADE = "░"
GONE = "┄"
SCALE = 11
"""Columns of the scale on the left."""
TALL = 5
"""Rows of bars from which on the middle of the scale is labelled, too."""

Values = Sequence[float | None]


@dataclass(frozen=True)
class Chart:
    """One figure over time: a value for each column, or None where there is none.

    Where there is a `second`, the part of each bar above the first is shaded. `label` writes a value with its unit on
    the scale, which goes up to `top`, or to the greatest value. `words` say what it amounts to. `gone` are the columns
    in which nothing was counted.
    """

    title: str
    words: str
    values: Values
    label: Callable[[float], str]
    second: Values = ()
    top: float | None = None
    tone: str = "accent"
    gone: Sequence[bool] = ()


def title_lines(chart: Chart, width: int) -> list[Line]:
    """The title and the words of a chart: on one line, if they fit."""
    title: Piece = (f" {chart.title}", "strong")
    if cell_len(chart.title) + cell_len(chart.words) + 4 <= width:
        return [((title, (f"  {chart.words}", "")), ())]
    return [((title,), ()), (((f"   {chart.words}", ""),), ())]


def bar_lines(chart: Chart, rows: int) -> list[Line]:
    """Draws the scale and the bars of a chart into `rows` lines, one column for each value."""
    top = chart.top or max((value for value in (*chart.values, *chart.second) if value), default=0.0)
    lines: list[Line] = []
    for row in range(rows, 0, -1):
        pieces: list[Piece] = [(f"{_label(chart, top, row, rows):>{SCALE - 1}} ", "dim")]
        for place, value in enumerate(chart.values):
            pieces.append(_part(chart, place, value, top, row, rows))
        lines.append((_joined(pieces), ()))
    return lines


def time_line(seconds: int, width: int) -> Line:
    """Draws the time below charts that are `width` columns wide and end now: `1h ago … 30m … now`."""
    room = width - SCALE
    marks = [" "] * room
    parts = 4 if seconds >= 3600 else 2
    for part in range(parts + 1):
        ago = seconds - seconds * part // parts
        word = "now" if not ago else f"{span(ago)} ago"
        at = min(room - len(word), max(0, round(room * part / parts) - len(word) // 2))
        marks[at : at + len(word)] = word
    return ((" " * SCALE + "".join(marks), "dim"),), ()


def _label(chart: Chart, top: float, row: int, rows: int) -> str:
    if row == rows:
        return chart.label(top) if top else ""
    if row == 1:
        return chart.label(0.0)
    return chart.label(top / 2) if top and rows >= TALL and row == rows // 2 + 1 else ""


def _part(chart: Chart, place: int, value: float | None, top: float, row: int, rows: int) -> Piece:
    """One cell of the bar of a column; in the lowest row a bar is never empty, so that every value is seen."""
    if chart.gone and chart.gone[place]:
        return (GONE if row == 1 else " ", "dim")
    first = (value or 0.0) / top * rows if top else 0.0
    second = (chart.second[place] or 0.0) / top * rows if chart.second and top else 0.0
    filled = first - (row - 1)
    if filled > 0:
        return EIGHTHS[max(1 if row == 1 else 0, min(8, int(filled * 8 + 0.5)))], chart.tone
    if second - (row - 1) >= 0.5 or (row == 1 and second > 0):
        return SHADE, "dim"
    return " ", ""


def _joined(pieces: Sequence[Piece]) -> tuple[Piece, ...]:
    """The same with neighbours of one tone as one piece."""
    found: list[Piece] = []
    for text, tone in pieces:
        if found and found[-1][1] == tone:
            found[-1] = (found[-1][0] + text, tone)
        else:
            found.append((text, tone))
    return tuple(found)
