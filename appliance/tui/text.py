"""How things are said on screen: a shape and a word for each state, short times, numbers with units. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from rich.cells import cell_len, chop_cells

from appliance.core.models import State
from appliance.core.text import escape
from appliance.core.units import format_size

Piece = tuple[str, str]
"""Text and its tone: "", good, warn, bad, dim, strong or accent."""
Cell = tuple[Piece, ...]

BARS = "▁▂▃▄▅▆▇█"

STATES: dict[State, tuple[str, str]] = {
    State.FAILING: ("✗", "bad"),
    State.STALE: ("▲", "warn"),
    State.CLONING: ("◐", "accent"),
    State.NEW: ("○", "accent"),
    State.FRESH: ("●", "good"),
    State.DISABLED: ("◇", "dim"),
}
"""The shape and tone of each state, the worst first: the order in which repositories are listed."""

WAYS = {
    "hit": ("●", "good"),
    "snapshot": ("●", "good"),
    "joined": ("●", "good"),
    "miss": ("○", "warn"),
    "direct": ("○", ""),
}
"""How a hydration was answered: filled from what was there already."""


def cell(text: str, tone: str = "") -> Cell:
    """A cell of one tone."""
    return ((text, tone),)


def plain(text: str) -> str:
    """A guest's or an upstream's words as they may be drawn: control characters as `escape` shows them, and what is not
    printable otherwise, about whose width terminals disagree, as dots.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else "·" for char in escape(text.replace("\t", " ")))


def fit(text: str, width: int) -> str:
    """Exactly `width` columns: filled up with spaces, or cut with an ellipsis."""
    missing = width - cell_len(text)
    if missing >= 0:
        return text + " " * missing
    if width <= 0:
        return ""
    cut = chop_cells(text, width - 1)[0] if width > 1 else ""
    return cut + "…" + " " * (width - 1 - cell_len(cut))


def state_cell(state: State) -> Cell:
    """Shape and word."""
    shape, tone = STATES[state]
    return cell(f"{shape} {state}", tone)


def span(seconds: float | None) -> str:
    """A time in at most six columns: `8s`, `4m`, `4m 20s`, `5h 2m`, `3d 4h`, `120d`, `6y`; `never` for None.

    Below ten minutes in steps of ten seconds from the first minute on: a figure that ticks each second says no more.
    """
    if seconds is None:
        return "never"
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 600:
        minutes, rest = divmod(whole, 60)
        return f"{minutes}m {rest // 10}0s" if rest >= 10 else f"{minutes}m"
    for name, size, smaller, smaller_size, most in (("h", 3600, "m", 60, 24), ("d", 86400, "h", 3600, 10)):
        if whole < size:
            return f"{whole // 60}m"
        if whole < size * most:
            rest = whole % size // smaller_size
            return f"{whole // size}{name} {rest}{smaller}" if rest else f"{whole // size}{name}"
    return f"{whole // 86400}d" if whole < 1000 * 86400 else f"{whole // (365 * 86400)}y"


def took(seconds: float) -> str:
    """How long something took: `<1 ms`, `12 ms`, `1.42 s`, `38 s`, `4m 20s`."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms" if seconds >= 0.0005 else "<1 ms"
    if seconds < 10:
        return f"{seconds:.2f} s"
    return f"{seconds:.0f} s" if seconds < 60 else span(seconds)


def size(number: int) -> str:
    """Bytes with their unit, `512 B`, `1.4 MiB`."""
    return format_size(number)


def count(number: int, word: str, plural: str | None = None) -> str:
    """`1 turn`, `1,024 turns`."""
    return f"{number:,} {word if number == 1 else plural or word + 's'}"


def percent(part: int, whole: int) -> str:
    """`97%`; `-` of nothing. Never 100% of what is not all."""
    return "-" if whole == 0 else f"{min(99, round(100 * part / whole)) if part < whole else 100}%"


def signed(sign: str, number: int) -> str:
    """`+1,024`, `-3`; nothing for 0."""
    return f"{sign}{number:,}" if number else ""


def wrapped(text: str, width: int, lines: int) -> list[str]:
    """The text on at most so many lines, broken between words; the last one says with an ellipsis that more came."""
    found = textwrap.wrap(plain(text), max(10, width), break_on_hyphens=False) or [""]
    return found if len(found) <= lines else [*found[: lines - 1], fit(" ".join(found[lines - 1 :]), width).rstrip()]


def spark(values: Sequence[float], top: float, width: int) -> str:
    """The newest `width` values as bars, the last at the right; `top` is a full bar."""
    shown = values[-width:]
    bars = "".join(BARS[max(0, min(len(BARS) - 1, int(value / top * len(BARS))))] for value in shown)
    return bars.rjust(width)


def lags(recent: Sequence[tuple[float, float, str]]) -> list[float]:
    """How far behind the mirror was when each refresh began: seconds since the last good one began."""
    found: list[float] = []
    good: float | None = None
    for started, _, result in recent:
        if good is not None:
            found.append(started - good)
        if result != "failed":
            good = started
    return found


def moment(at: str) -> str:
    """The time of day of an RFC 3339 time, in UTC as the logs have it: `12:00:07`."""
    return at[11:19]


def moment_with_day(at: str) -> str:
    """`01-31 12:00:07`."""
    return f"{at[5:10]} {at[11:19]}"


def cut_pieces(pieces: Sequence[Piece], width: int, *, tail: bool = False) -> Cell:
    """At most `width` columns of them, with an ellipsis where they are cut: at the end, or at the beginning."""
    if tail:
        mirrored = cut_pieces([(plain(text)[::-1], tone) for text, tone in reversed(pieces)], width)
        return tuple((text[::-1], tone) for text, tone in reversed(mirrored))
    found: list[Piece] = []
    left = max(0, width)
    for text, tone in pieces:
        text = plain(text)
        wide = cell_len(text)
        if wide > left:
            if left or not found:
                found.append((fit(text, left).rstrip(), tone))
            else:
                # Nothing of it fits: the piece before gives its last place to the ellipsis.
                last, last_tone = found.pop()
                found.append((fit(last + "…", cell_len(last)).rstrip(), last_tone))
            break
        found.append((text, tone))
        left -= wide
    return tuple(found)


def bar(part: int, whole: int, width: int) -> str:
    """A gauge: `━━━━────`. Something is never shown as nothing, and less than all never as all."""
    filled = 0 if whole <= 0 else round(width * min(part, whole) / whole)
    if 0 < part < whole:
        filled = max(1, min(width - 1, filled))
    return "━" * filled + "─" * (width - filled)
