"""Searches in the text of a diff, beside the filter that every list has."""

from __future__ import annotations

from textual.binding import Binding, BindingType
from textual.widgets import Input

from appliance.tui.screens.view import View
from appliance.tui.text import Piece, count
from appliance.tui.widgets.diffview import DiffView

SEARCH_KEYS: list[BindingType] = [
    Binding("slash", "filter", "search", tooltip="search the text; in the list of files, filter it"),
    Binding("m", "match(1)", "next match", tooltip="go to the next match of the search"),
    Binding("M", "match(-1)", "match before", show=False, tooltip="go to the match before"),
]


class Searching(View):
    """The search in `diff`. The body of the view has a field with the id `search`."""

    searched = ""
    """What is searched for."""

    @property
    def diff(self) -> DiffView:
        """The text that is searched."""
        return self.query_one(DiffView)

    def tell_search(self) -> None:
        """Shows `found` anew."""

    @property
    def found(self) -> list[Piece]:
        """Which match the text is at: `3 of 17 matches`; nothing without a search."""
        number, matches = self.diff.match
        if not self.searched:
            return []
        if not matches:
            return [("no match in this file  ", "warn")]
        return [(f"{number:,} of {count(matches, 'match', 'matches')}  ", "good")]

    def offers(self, binding: Binding) -> bool:
        """Whether the key belongs to what is shown: matches are of a search."""
        return super().offers(binding) and (binding.action != "match(1)" or bool(self.searched))

    def on_input_changed(self, event: Input.Changed) -> None:
        """Searches while words are typed."""
        super().on_input_changed(event)
        if event.input.id == "search":
            self.searched = event.value
            self.diff.search(event.value)
            self.tell_search()
            self.offer_keys()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Keeps the search."""
        super().on_input_submitted(event)
        if event.input.id == "search":
            event.input.set_class(bool(event.value), "-shown")
            self.focus_body()

    def action_back(self) -> None:
        """Clears the search; without one, does what the key does in every view."""
        field = self.query_one("#search", Input)
        if field.has_class("-shown"):
            field.value = ""
            field.remove_class("-shown")
            self.focus_body()
        else:
            super().action_back()

    def action_match(self, by: int) -> None:
        """Goes to the next match of the search, or to the one before; from the last to the first."""
        self.diff.next_match(by)
        self.tell_search()
