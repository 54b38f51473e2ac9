"""The first line: which view this is, and how serve is."""

from __future__ import annotations

from appliance.tui.model import Model
from appliance.tui.widgets.lines import Lines
from appliance.tui.words import Piece, count

TABS = (
    ("1", "Repositories", "repositories"),
    ("2", "Sessions", "sessions"),
    ("3", "Activity", "activity"),
    ("4", "Health", "health"),
)


class Top(Lines):
    """Tabs at the left, serve at the right."""

    def tell(self, model: Model, here: str) -> None:
        """Shows the present."""
        right = _serve(model)
        short = self.size.width < 76
        left: list[Piece] = [(" ", "")]
        for key, title, mode in TABS:
            word = title[:4] if short and mode != here else title
            left += [(f" {key}", "here" if mode == here else "key"), (f" {word} ", "here" if mode == here else "")]
        self.show((tuple(left), right))


def _serve(model: Model) -> tuple[Piece, ...]:
    if not model.looked:
        return (("… looking for serve ", "dim"),)
    if not model.serving:
        return (("○ no serve: read-only ", "warn"),)
    if "pulse" in model.troubles:
        return (("▲ serve does not answer ", "warn"),)
    guests = count(model.pulse["clients"], "guest") if model.pulse else "…"
    return (("● serving  ", "good"), (f"{guests} ", ""))
