"""The line on which commands are typed, with what would complete them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.message import Message
from textual.suggester import Suggester
from textual.widgets import Input

Complete = Callable[[str], str | None]


class Completions(Suggester):
    """Suggests what `complete` returns."""

    def __init__(self, complete: Complete) -> None:
        super().__init__(use_cache=False, case_sensitive=True)
        self._complete = complete

    async def get_suggestion(self, value: str) -> str | None:
        """Returns the whole line that would be typed."""
        return self._complete(value)


class CommandLine(Input):
    """Shown while a command is typed. Enter posts `Entered` with it, escape with nothing."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "give_up", "close", show=False),
        Binding("tab", "complete", "complete", show=False),
    ]

    @dataclass
    class Entered(Message):
        """The line was closed; `text` is the command, empty for none."""

        text: str

    def __init__(self, complete: Complete, *, id: str | None = None) -> None:
        super().__init__(
            placeholder="a command, as on the command line; tab completes, escape closes",
            suggester=Completions(complete),
            compact=True,
            id=id,
        )
        self._complete = complete

    def action_complete(self) -> None:
        """Completes what was typed."""
        if completed := self._complete(self.value):
            self.value = completed
            self.cursor_position = len(completed)

    async def action_submit(self) -> None:
        """Closes the line and tells what was typed."""
        self._close(self.value.strip())

    def action_give_up(self) -> None:
        """Closes the line and does nothing."""
        self._close("")

    def _close(self, text: str) -> None:
        self.value = ""
        self.remove_class("-shown")
        self.post_message(self.Entered(text))
