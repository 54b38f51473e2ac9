"""The first line: the tabs, and the state of serve."""

from __future__ import annotations

from collections.abc import Callable

from appliance.core.models import UNHEALTHY
from appliance.tui.data.model import Model
from appliance.tui.text import STATES, Cell, Piece, count
from appliance.tui.widgets.lines import Lines

TABS = (
    ("1", "Repositories", "repositories"),
    ("2", "Sessions", "sessions"),
    ("3", "Activity", "activity"),
    ("4", "Node", "node"),
    ("5", "Guests", "guests"),
)
SHORT = {"Repositories": "Repos"}
"""A shorter word, for narrow terminals."""
ROOM = 25
"""The columns that the state of serve takes, so that the tabs are named alike whatever that is."""


class Top(Lines):
    """Shows tabs on the left and serve on the right."""

    @staticmethod
    def mode_at(index: int) -> str | None:
        """Returns the mode of the tab that the piece with this index belongs to; each is two, after the blank."""
        return TABS[(index - 1) // 2][2] if 0 < index <= 2 * len(TABS) else None

    def tell(self, model: Model, here: str) -> None:
        """Shows the current state of the model; `here` is the mode whose tab is marked."""
        right = _serve(model)
        left = next((tabs for tabs in _tabs(here) if _width(tabs) + ROOM <= self.size.width), _tabs(here)[-1])
        if here != "repositories":
            more = (*_behind(model), *right)
            right = more if _width(left) + _width(more) < self.size.width else right
        self.show((left, right))


def _tabs(here: str) -> list[Cell]:
    """The tabs from the widest form to the narrowest: apart, close together, with a shorter word, only the marked."""
    forms: list[tuple[str, Callable[[str, bool], str]]] = [
        (" ", lambda title, _: title),
        ("", lambda title, _: title),
        ("", lambda title, _: SHORT.get(title, title)),
        ("", lambda title, is_here: title if is_here else ""),
    ]
    found: list[Cell] = []
    for gap, form in forms:
        left: list[Piece] = [(" ", "")]
        for key, title, mode in TABS:
            is_here = mode == here
            word = f" {form(title, is_here)} ".replace("  ", " ")
            left += [(f"{gap}{key}", "here" if is_here else "key"), (word, "here" if is_here else "")]
        found.append(tuple(left))
    return found


def _width(pieces: Cell) -> int:
    return sum(len(text) for text, _ in pieces)


def _behind(model: Model) -> tuple[Piece, ...]:
    """Counts unhealthy repositories, for views that do not list them."""
    counts = model.counts()
    found = [(state, counts[state]) for state in UNHEALTHY if counts.get(state)]
    return tuple((f"{STATES[state][0]} {number:,} {state}  ", STATES[state][1]) for state, number in found)


def _serve(model: Model) -> tuple[Piece, ...]:
    if not model.looked:
        return (("… looking for serve ", "dim"),)
    if not model.serving:
        return (("○ no serve: read-only ", "warn"),)
    if "pulse" in model.problems:
        return (("▲ serve does not answer ", "warn"),)
    if model.pulse and model.pulse["pushes"].get("off"):
        return (("▲ pushes are off ", "bad"),)
    guests = count(model.pulse["clients"], "guest") if model.pulse else "…"
    return (("● serving  ", "good"), (f"{guests} ", ""))
