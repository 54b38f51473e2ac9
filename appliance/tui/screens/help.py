"""The help: every key of every view, those of the view below it first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, Label

from appliance.tui.text import cell
from appliance.tui.widgets.keys import key_names
from appliance.tui.widgets.listing import Column, Listing

FIGURES = (
    ("hit ratio", "hit, joined and snapshot, in these and the misses"),
    ("to workspace", "from the request of a tar or clone to its last byte"),
    ("lag", "since a mirror was last equal to its upstream"),
)
"""What a figure means, wherever it stands; a hit ratio is of ten minutes unless its span is said."""


@dataclass(frozen=True)
class HelpLine:
    """One line of the help: a key and what it does, or a heading, which has no key."""

    number: int
    key: str
    text: str


def help_lines(sections: list[tuple[str, list[BindingType]]]) -> Iterator[HelpLine]:
    """Turns sections of bindings into lines; below them stands what the figures mean."""
    number = 0
    for title, bindings in sections:
        yield HelpLine(number, "", title)
        number += 1
        for binding in bindings:
            if isinstance(binding, Binding):
                yield HelpLine(number, key_names(binding.key), binding.tooltip or binding.description)
                number += 1
    yield HelpLine(number, "", "What the figures mean")
    for term, text in FIGURES:
        number += 1
        yield HelpLine(number, term, text)


class HelpScreen(ModalScreen[None]):
    """Shows the lines as a list, which the keys of every list scroll."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,question_mark,q", "close", "close"),
        Binding("slash", "find", "find"),
    ]

    def __init__(self, sections: list[tuple[str, list[BindingType]]]) -> None:
        super().__init__()
        self._sections = sections

    def compose(self) -> ComposeResult:
        """Yields the list."""
        with Vertical(classes="dialog help"):
            listing: Listing[HelpLine] = Listing(
                [
                    Column("KEY", lambda line: cell(line.key, "accent"), 14, 0),
                    Column("DOES", lambda line: cell(line.text, "" if line.key else "strong"), 20, 0, grows=True),
                ],
                lambda line: line.number,
            )
            yield listing
            yield Input(id="find", placeholder="a key, or words of what it does", compact=True)
            yield Label("/ finds · escape closes", classes="hint")

    def on_mount(self) -> None:
        """Fills the list."""
        self.query_one(Listing).focus()
        self._show("")

    def on_key(self, event: events.Key) -> None:
        """Opens the field at once, and gives it the letters that were on the way to the list when it opened."""
        field = self.query_one(Input)
        if self.focused is field and event.is_printable and event.character:
            field.insert_text_at_cursor(event.character)
            event.stop()
        elif event.key == "slash":
            event.stop()
            self.action_find()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Lists the keys that match."""
        self._show(event.value)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Goes back to the list."""
        self.query_one(Listing).focus()

    def action_find(self) -> None:
        """Opens the field for words."""
        field = self.query_one(Input)
        field.add_class("-shown")
        self.set_focus(field)

    def action_close(self) -> None:
        """Clears the words; without any, closes the help."""
        field = self.query_one(Input)
        if field.has_class("-shown"):
            field.value = ""
            field.remove_class("-shown")
            self.query_one(Listing).focus()
        else:
            self.dismiss()

    def _show(self, words: str) -> None:
        wanted = words.lower().split()
        lines = [
            line
            for line in help_lines(self._sections)
            if all(word in f"{line.key} {line.text}".lower() for word in wanted) and (line.key or not wanted)
        ]
        self.query_one(Listing).show(lines)
