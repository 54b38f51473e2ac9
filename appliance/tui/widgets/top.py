"""The first line: the tabs, and the state of serve."""

from __future__ import annotations

from appliance.core.models import UNHEALTHY
from appliance.tui.data.model import Model
from appliance.tui.text import STATES, Piece, count
from appliance.tui.widgets.lines import Lines

TABS = (
    ("1", "Repositories", "repositories"),
    ("2", "Sessions", "sessions"),
    ("3", "Activity", "activity"),
    ("4", "Health", "health"),
)

ROOM = 100
"""Terminals of at least this many columns have room for the counts of unhealthy repositories."""


class Top(Lines):
    """Shows tabs on the left and serve on the right."""

    def tell(self, model: Model, here: str) -> None:
        """Shows the current state of the model; `here` is the mode whose tab is marked."""
        right = _serve(model)
        if self.size.width >= ROOM and here != "repositories":
            right = (*_behind(model), *right)
        short = self.size.width < 76
        left: list[Piece] = [(" ", "")]
        for key, title, mode in TABS:
            word = title[:4] if short and mode != here else title
            left += [(f" {key}", "here" if mode == here else "key"), (f" {word} ", "here" if mode == here else "")]
        self.show((tuple(left), right))


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
