"""What every view has: the tabs on top, a filter, the keys at the bottom, and news of what changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.widgets import Input

from appliance.tui.context import CommandTyped, Context, GoTo
from appliance.tui.data.follower import RATES, REPOS, SERVE, TIME
from appliance.tui.data.model import Model
from appliance.tui.screens.dialogs import Fact, Whole
from appliance.tui.text import plain, wrapped
from appliance.tui.widgets.command_line import CommandLine
from appliance.tui.widgets.keys import Keys
from appliance.tui.widgets.lines import Lines
from appliance.tui.widgets.top import Top

ALL = frozenset({REPOS, SERVE, TIME, RATES})

WRITES = frozenset({"refresh", "refresh_all", "add", "switch", "remove", "keep", "drop"})
"""The names of the actions that need a running serve."""

TALL = 15
"""Terminals of fewer rows show the list alone."""
WIDE = 110
"""Terminals of at least as many columns show details of a row beside the list, not below it."""


class View(Screen[None]):
    """One full screen. Subclasses yield their widgets in `body` and show changes in `take`."""

    heading: ClassVar[str] = ""
    """The name of the view in the help and in docs/tui.md."""
    here: ClassVar[str] = ""
    """The mode whose tab is marked."""
    opened: ClassVar[bool] = False
    """Whether the view opens over another one, to which escape goes back."""
    VERTICAL_BREAKPOINTS = [(0, "-short"), (TALL, "-tall")]  # noqa: RUF012 - the type is Textual's
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (WIDE, "-wide")]  # noqa: RUF012
    BINDINGS: ClassVar[list[BindingType]] = []

    def __init__(self, context: Context) -> None:
        super().__init__()
        self.context = context

    @property
    def model(self) -> Model:
        """What is known of the node now."""
        return self.context.model

    def compose(self) -> ComposeResult:
        """Lays out tabs, body, problem, filter and keys."""
        yield Top(id="top")
        yield from self.body()
        yield Lines(id="trouble")
        yield Input(id="filter", placeholder="filter; enter keeps it, escape clears it", compact=True)
        yield CommandLine(self.context.complete, id="command")
        yield Keys(id="keys")

    def body(self) -> ComposeResult:
        """Yields the widgets between the tabs and the filter."""
        raise NotImplementedError

    def take(self, news: frozenset[str]) -> None:
        """Shows what changed; `news` has the topics."""
        if {SERVE, TIME} & news:
            self.query_one(Top).tell(self.model, self.here)
            self._complain()
        if SERVE in news:
            self.offer_keys()

    def _complain(self) -> None:
        """Shows above the keys what cannot be read at the moment."""
        trouble = self.query_one("#trouble", Lines)
        text = next(iter(self.model.problems.values()), "")
        lines = wrapped(text, self.size.width - 5, 3) if text else []
        trouble.styles.height = len(lines)
        trouble.show(*(((("   " if number else " ✗ ", "bad"), (line, "")), ()) for number, line in enumerate(lines)))

    def offer_keys(self) -> None:
        """Shows the keys of this view, in the order of its bindings."""
        self.query_one(Keys).offer(list(self._offered()))

    def _offered(self) -> Iterator[tuple[Binding, bool]]:
        for binding in [*self.BINDINGS, *self.context.keys]:
            if isinstance(binding, Binding) and binding.show and self.offers(binding):
                yield replace(binding, description=self.named(binding)), self.usable(binding)

    def offers(self, binding: Binding) -> bool:
        """Whether the key belongs to what the view shows at the moment."""
        return True

    def named(self, binding: Binding) -> str:
        """The word for what the key would do now."""
        return binding.description

    def usable(self, binding: Binding) -> bool:
        """Whether the key does something now."""
        return self.model.serving or binding.action not in WRITES

    def on_screen_resume(self) -> None:
        """Catches up with what changed while another view was visible."""
        self.reread()
        self.take(ALL)

    def reread(self) -> None:
        """Reads what only this view shows, when it appears and when reading works again."""

    def on_resize(self) -> None:
        """Draws everything again, because more or fewer keys may fit."""
        self.call_after_refresh(self.take, ALL)

    # What is clicked

    @on(Lines.Clicked)
    def _clicked(self, event: Lines.Clicked) -> None:
        """Goes to the view whose tab was clicked, or does what the clicked key does."""
        if isinstance(event.lines, Top) and (mode := event.lines.mode_at(event.index)):
            self.post_message(GoTo(mode))
        elif isinstance(event.lines, Keys):
            if isinstance(self.focused, Input):
                # The key is meant for the list, and not for the field in which words are typed.
                self.focus_body()
            # Later, because the focus moves later too.
            self.app.call_later(self.app.simulate_key, event.lines.key_at(event.index))

    # Fields in which words are typed

    filter_words = ""

    def open_field(self, name: str) -> None:
        """Shows the field and moves the focus there, at once: the next key may have been pressed already."""
        field = self.query_one(f"#{name}", Input)
        field.add_class("-shown")
        self.set_focus(field)

    def on_key(self, event: events.Key) -> None:
        """Opens the fields, and gives them the letters that were on the way to a list when they opened.

        The app would do it too late: letters that arrive with the key, as they do over a slow line, would be commands.
        """
        if isinstance(self.focused, Input):
            if event.is_printable and event.character:
                self.focused.insert_text_at_cursor(event.character)
                event.stop()
        elif event.key in ("slash", "colon"):
            event.stop()
            if event.key == "colon":
                self.action_command()
            elif any(isinstance(each, Binding) and each.key == "slash" for each in self.BINDINGS):
                self.action_filter()

    def action_command(self) -> None:
        """Opens the line for commands."""
        self.open_field("command")

    def action_filter(self) -> None:
        """Opens the filter line."""
        self.open_field("filter")

    def filter_by(self, words: str) -> None:
        """Filters by these words, as if they had been typed; an input draws what it is given, so they are made safe."""
        self.query_one("#filter", Input).value = plain(words)
        self._close_filter()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filters while words are typed."""
        if event.input.id == "filter" and event.value.strip() != self.filter_words:
            had_words = bool(self.filter_words)
            self.filter_words = event.value.strip()
            self.filtered()
            if bool(self.filter_words) != had_words:
                self.offer_keys()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Keeps the filter."""
        if event.input.id == "filter":
            self._close_filter()

    def on_command_line_entered(self, event: CommandLine.Entered) -> None:
        """Closes the line, and has the command carried out."""
        self.focus_body()
        if event.text:
            self.post_message(CommandTyped(event.text))

    def show_filter(self, words: str) -> None:
        """Puts these words into the filter line, for a list that is filtered by them already."""
        self.filter_words = words
        field = self.query_one("#filter", Input)
        field.value = words
        field.set_class(bool(words), "-shown")

    def _close_filter(self) -> None:
        field = self.query_one("#filter", Input)
        field.set_class(bool(field.value.strip()), "-shown")
        self.focus_body()

    def action_back(self) -> None:
        """Clears the filter; without one, leaves a view that opened over another."""
        field = self.query_one("#filter", Input)
        if field.has_class("-shown"):
            field.value = ""
            self._close_filter()
        elif self.opened:
            self.dismiss()

    def filtered(self) -> None:
        """Shows what matches the words of the filter now."""

    def focus_body(self) -> None:
        """Moves the focus back to what is filtered."""

    def show_whole(self, title: str, facts: Sequence[Fact]) -> None:
        """Shows one row whole: pairs of a name and a text, which may have many lines."""
        self.context.ask(Whole(title, facts, self.context.copy), lambda _: None)

    # Without a serve

    def may_write(self) -> bool:
        """Returns whether a serve is running to carry out an order, and shows a notice if not."""
        said = "serve is not running: nothing can be changed from here.\nStart it, and this view connects by itself."
        if not self.model.serving:
            looking = "still looking for serve: press the key again in a moment"
            self.context.say(said if self.model.looked else looking, severity="warning")
        return self.model.serving

    def done(self) -> None:
        """Reads what an order may have changed, after it succeeded."""

    @property
    def has_widgets(self) -> bool:
        """Whether the widgets exist, so that news can be shown."""
        return bool(self.query("#keys"))

    @property
    def is_waiting(self) -> bool:
        """Whether something is to be read in a moment, once the cursor rests."""
        return False

    def happened(self, events: list[dict[str, Any]]) -> None:
        """Takes the events that arrived, oldest first."""
