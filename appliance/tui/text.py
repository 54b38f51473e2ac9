"""How things are worded on screen: a shape and a word for each state, short times, numbers with units. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from rich.cells import cell_len, chop_cells

from appliance.core.models import State
from appliance.core.text import escape
from appliance.core.units import counted, format_size

Piece = tuple[str, str]
"""A text and its tone, which is empty or a class `tone--…` of the style sheet."""
Cell = tuple[Piece, ...]

BARS = "▁▂▃▄▅▆▇█"

STATES: dict[State, tuple[str, str]] = {
    State.DAMAGED: ("■", "bad"),
    State.FAILING: ("✗", "bad"),
    State.STALE: ("▲", "warn"),
    State.CLONING: ("◐", "accent"),
    State.NEW: ("○", "accent"),
    State.FRESH: ("●", "good"),
    State.DISABLED: ("◇", "dim"),
}
"""The shape and tone of each state, the worst first, which is the order in which repositories are listed."""

WAYS = {
    "hit": ("●", "good"),
    "snapshot": ("●", "good"),
    "joined": ("●", "good"),
    "miss": ("○", "warn"),
    "direct": ("○", ""),
}
"""The shape and tone of each way to answer a hydration; a filled shape means that the bytes were there already."""


def cell(text: str, tone: str = "") -> Cell:
    """Makes a cell of one tone."""
    return ((text, tone),)


def plain(text: str) -> str:
    """Makes text from a guest or an upstream safe to draw.

    Control characters become the escapes of `escape`. Others that are not printable become dots, because terminals
    disagree about their width.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else "·" for char in escape(text.replace("\t", " ")))


def fit(text: str, width: int) -> str:
    """Fits the text to exactly `width` columns, with spaces, or with an ellipsis where it is cut."""
    missing = width - cell_len(text)
    if missing >= 0:
        return text + " " * missing
    if width <= 0:
        return ""
    cut = chop_cells(text, width - 1)[0] if width > 1 else ""
    return cut + "…" + " " * (width - 1 - cell_len(cut))


def state_cell(state: State) -> Cell:
    """Makes a cell of the shape and the word of a state."""
    shape, tone = STATES[state]
    return cell(f"{shape} {state}", tone)


def span(seconds: float | None) -> str:
    """Writes a time in at most six columns: `8s`, `4m`, `4m 20s`, `5h 2m`, `3d 4h`, `120d`, `6y`; `never` for None.

    From one to ten minutes it moves in steps of ten seconds, because a figure that ticks each second says no more.
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
    """Writes how long something took: `<1 ms`, `12 ms`, `1.42 s`, `38 s`, `4m 20s`."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms" if seconds >= 0.0005 else "<1 ms"
    if seconds < 10:
        return f"{seconds:.2f} s"
    return f"{seconds:.0f} s" if seconds < 60 else span(seconds)


def size(number: int) -> str:
    """Writes bytes with their unit: `512 B`, `1.4 MiB`."""
    return format_size(number)


def count(number: int, word: str, plural: str | None = None) -> str:
    """Writes a count: `1 turn`, `1,024 turns`."""
    return counted(number, word, plural or f"{word}s")


def client_cell(client: str, guest: str | None) -> Cell:
    """Makes a cell of who it was: the name of a known guest, or the address of any other."""
    return cell(guest) if guest else cell(client, "dim")


def origin(client: str, guest: str | None) -> str:
    """Writes who a known guest is and where it came from: `vm-7 from 10.0.3.2`; empty for any other."""
    return f"{guest} from {client}" if guest else ""


def percent(part: int, whole: int) -> str:
    """Writes a share: `97%`, or `-` if the whole is 0. Only the whole itself is 100%."""
    return "-" if whole == 0 else f"{min(99, round(100 * part / whole)) if part < whole else 100}%"


def hydration_words(per_minute: int, warm: int, counted: int) -> str:
    """Writes the hydrations of the last minute, and their hit ratio once any of them was counted."""
    ratio = f", hit ratio {percent(warm, counted)}" if counted else ""
    return f"{count(per_minute, 'hydration')} a minute{ratio}"


def signed(sign: str, number: int) -> str:
    """Writes a number with its sign: `+1,024`, `-3`; empty for 0."""
    return f"{sign}{number:,}" if number else ""


def wrapped(text: str, width: int, lines: int) -> list[str]:
    """Breaks the text between words into at most `lines` lines; an ellipsis ends the last one if more would follow."""
    found = textwrap.wrap(plain(text), max(10, width), break_on_hyphens=False) or [""]
    return found if len(found) <= lines else [*found[: lines - 1], fit(" ".join(found[lines - 1 :]), width).rstrip()]


def spark(values: Sequence[float], top: float, width: int) -> str:
    """Draws the newest `width` values as bars, the last on the right; a full bar is `top`."""
    shown = values[-width:]
    bars = "".join(BARS[max(0, min(len(BARS) - 1, int(value / top * len(BARS))))] for value in shown)
    return bars.rjust(width)


def lags(recent: Sequence[tuple[float, float, str]]) -> list[float]:
    """Returns the lag at the start of each refresh: the seconds since the previous successful one started."""
    found: list[float] = []
    good: float | None = None
    for started, _, result in recent:
        if good is not None:
            found.append(started - good)
        if result != "failed":
            good = started
    return found


def cut_pieces(pieces: Sequence[Piece], width: int, *, tail: bool = False) -> Cell:
    """Cuts the pieces to at most `width` columns, with an ellipsis at the end, or for `tail` at the beginning."""
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
                # Nothing of it fits, so the piece before gives its last column to the ellipsis.
                last, last_tone = found.pop()
                found.append((fit(last + "…", cell_len(last)).rstrip(), last_tone))
            break
        found.append((text, tone))
        left -= wide
    return tuple(found)


def bar(part: int, whole: int, width: int) -> str:
    """Draws a gauge: `━━━━────`. Something is never drawn as nothing, and less than all never as all."""
    filled = 0 if whole <= 0 else round(width * min(part, whole) / whole)
    if 0 < part < whole:
        filled = max(1, min(width - 1, filled))
    return "━" * filled + "─" * (width - filled)
