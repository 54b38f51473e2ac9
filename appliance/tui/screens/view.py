"""What every view has: the line on top, a filter, the keys at the bottom, and news from the app."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.widgets import Input

from appliance.tui.context import Context
from appliance.tui.data.follower import RATES, REPOS, SERVE, TIME
from appliance.tui.data.model import Model
from appliance.tui.text import wrapped
from appliance.tui.widgets.keys import Keys
from appliance.tui.widgets.lines import Lines
from appliance.tui.widgets.top import Top

ALL = frozenset({REPOS, SERVE, TIME, RATES})

WRITES = frozenset({"refresh", "refresh_all", "add", "switch", "remove", "keep", "drop"})
"""Actions that need a running serve."""

TALL = 15
"""Rows below which only the list itself is shown."""
WIDE = 110
"""Columns from which on what belongs to a row stands beside the list, not below it."""


class View(Screen[None]):
    """One full screen. Subclasses fill `body`, and take news."""

    heading: ClassVar[str] = ""
    """Its name in the help and in docs/tui.md."""
    here: ClassVar[str] = ""
    """The tab that is marked."""
    opened: ClassVar[bool] = False
    """Whether it opens over another view, to which it goes back."""
    VERTICAL_BREAKPOINTS = [(0, "-short"), (TALL, "-tall")]  # noqa: RUF012 - the type is Textual's
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (WIDE, "-wide")]  # noqa: RUF012
    BINDINGS: ClassVar[list[BindingType]] = []

    def __init__(self, context: Context) -> None:
        super().__init__()
        self.context = context

    @property
    def model(self) -> Model:
        """What is known now."""
        return self.context.model

    def compose(self) -> ComposeResult:
        """Top, body, filter, keys."""
        yield Top(id="top")
        yield from self.body()
        yield Lines(id="trouble")
        yield Input(id="filter", placeholder="filter; enter keeps it, escape drops it", compact=True)
        yield Keys(id="keys")

    def body(self) -> ComposeResult:
        """The widgets between."""
        raise NotImplementedError

    def take(self, news: frozenset[str]) -> None:
        """Shows what changed. `news` says what it may be."""
        if {SERVE, TIME} & news:
            self.query_one(Top).tell(self.model, self.here)
            self._complain()
        if SERVE in news:
            self.offer_keys()

    def _complain(self) -> None:
        """Above the keys: what cannot be read just now."""
        trouble = self.query_one("#trouble", Lines)
        text = next(iter(self.model.problems.values()), "")
        lines = wrapped(text, self.size.width - 5, 3) if text else []
        trouble.styles.height = len(lines)
        trouble.show(*(((("   " if number else " ✗ ", "bad"), (line, "")), ()) for number, line in enumerate(lines)))

    def offer_keys(self) -> None:
        """The keys of this view, in the order of its bindings."""
        self.query_one(Keys).offer(list(self._offered()))

    def _offered(self) -> Iterator[tuple[Binding, bool]]:
        for binding in [*self.BINDINGS, *self.context.keys]:
            if isinstance(binding, Binding) and binding.show:
                yield binding, self.model.serving or binding.action not in WRITES

    def on_screen_resume(self) -> None:
        """Something may have changed while it was not seen."""
        self.reread()
        self.take(ALL)

    def reread(self) -> None:
        """Reads what this view alone shows: it was not seen for a while, or could not be read."""

    def on_resize(self) -> None:
        """More keys may fit, or fewer."""
        self.call_after_refresh(self.take, ALL)

    # The filter

    filter_words = ""

    def action_filter(self) -> None:
        """Opens the filter's line."""
        field = self.query_one("#filter", Input)
        field.add_class("-shown")
        field.focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filters while it is typed."""
        if event.input.id == "filter" and event.value.strip() != self.filter_words:
            self.filter_words = event.value.strip()
            self.filtered()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Keeps the filter."""
        if event.input.id == "filter":
            self._close_filter()

    def _close_filter(self) -> None:
        field = self.query_one("#filter", Input)
        field.set_class(bool(field.value.strip()), "-shown")
        self.focus_body()

    def action_back(self) -> None:
        """Drops the filter, or leaves a view that was opened over another."""
        field = self.query_one("#filter", Input)
        if field.has_class("-shown"):
            field.value = ""
            self._close_filter()
        elif self.opened:
            self.dismiss()

    def filtered(self) -> None:
        """The filter's words are others now."""

    def focus_body(self) -> None:
        """Gives the keys back to what is filtered."""

    # Without a serve

    def may_write(self) -> bool:
        """Whether there is a serve to do it; says so when there is none."""
        said = "serve is not running: nothing can be changed from here.\nStart it; this view joins it by itself."
        if not self.model.serving:
            looking = "still looking for serve: press it again in a moment"
            self.context.say(said if self.model.looked else looking, severity="warning")
        return self.model.serving

    def done(self) -> None:
        """Something that was asked for is done."""

    @property
    def has_widgets(self) -> bool:
        """Whether it has its widgets, and can show news."""
        return bool(self.query("#keys"))

    def happened(self, events: list[dict[str, Any]]) -> None:
        """Events that came just now."""
