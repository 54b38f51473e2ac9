"""Looks sessions up in the database while a filter is typed: off the UI thread, and one search at a time."""

from __future__ import annotations

from collections.abc import Callable

from textual.screen import Screen

from appliance.tui.context import Context
from appliance.tui.data.messages import ReadFailed, SessionsFound
from appliance.tui.data.session_query import Found, Sought


class SessionSearch:
    """What the database finds for the filter of `view`, which receives SessionsFound; `changed` draws what is known."""

    def __init__(self, context: Context, view: Screen[None], changed: Callable[[], None]) -> None:
        self._context = context
        self._view = view
        self._changed = changed
        self._sought = Sought()
        self.found = Found()
        self.wrong = ""
        """Why the last search failed; empty if it did not."""

    @property
    def is_searching(self) -> bool:
        """Whether an answer is still to come."""
        return self.found.sought != self._sought and not self.wrong

    def want(self, sought: Sought) -> None:
        """Searches for this from now on; while a search runs, the newest one waits, and replaces others that do."""
        if sought == self._sought:
            return
        self._sought, self.wrong = sought, ""
        if sought:
            self.again()
        else:
            self.found = Found()

    def again(self) -> None:
        """Searches once more, because a turn may have been recorded since."""
        sought, queries = self._sought, self._context.queries
        if not sought:
            return

        def work() -> SessionsFound:
            touched = queries.find_sessions(path=sought.path) if sought.path is not None else frozenset()
            said = {word: queries.find_sessions(text=word) for word in sought.words}
            return SessionsFound(Found(sought, touched, said, queries.unsearched()))

        self._context.loader.read("search", self._view, work, failed=lambda message: self._failed(sought, message))

    def take(self, message: SessionsFound) -> bool:
        """Takes an answer, and returns whether it is one to what is wanted now."""
        if message.found.sought != self._sought:
            return False
        self.found, self.wrong = message.found, ""
        return True

    def _failed(self, sought: Sought, message: ReadFailed) -> None:
        if sought != self._sought:
            return
        self.wrong = f"{message.error.message}; {message.error.hint}".strip("; ")
        self._changed()
