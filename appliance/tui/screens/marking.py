"""Marks rows of a list, so that a key acts on several of them at once: on sessions, repositories, guests."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial
from typing import Any

from textual.binding import Binding, BindingType

from appliance.tui.context import Context
from appliance.tui.data.batch import Batch, Order, carry_out
from appliance.tui.screens.dialogs import CANCEL, Ask
from appliance.tui.screens.view import View
from appliance.tui.text import Piece
from appliance.tui.widgets.listing import Listing

MARK_KEYS: list[BindingType] = [
    Binding("space", "mark", "mark", tooltip="mark it, or take its mark off"),
    Binding("asterisk", "mark_all", "mark all", tooltip="mark every row that the filter shows"),
]
MARK = "✓ "


class Marks:
    """The keys of marked rows, in the order in which they were marked."""

    def __init__(self, key: Callable[[Any], Hashable]) -> None:
        self._key = key
        self._keys: dict[Hashable, None] = {}

    @property
    def keys(self) -> Sequence[Hashable]:
        """The keys of the marked rows."""
        return tuple(self._keys)

    def has(self, row: Any) -> bool:
        """Whether the row is marked."""
        return self._key(row) in self._keys

    def piece(self, row: Any) -> Piece:
        """The mark of the row as a part of its first cell; empty without a mark."""
        return (MARK if self.has(row) else "", "accent")

    def toggle(self, row: Any) -> None:
        """Marks the row, or takes its mark off."""
        if self.has(row):
            self.remove([self._key(row)])
        else:
            self.add([row])

    def add(self, rows: Iterable[Any]) -> None:
        """Marks the rows."""
        self._keys |= dict.fromkeys(map(self._key, rows))

    def remove(self, keys: Iterable[Hashable]) -> None:
        """Takes the marks off the rows with these keys."""
        for key in keys:
            self._keys.pop(key, None)

    def clear(self) -> None:
        """Takes all marks off."""
        self._keys = {}


class Marking(View):
    """The marks on the rows of one list of the view."""

    @property
    def marks(self) -> Marks:
        """The marks."""
        raise NotImplementedError

    @property
    def markable(self) -> Listing[Any] | None:
        """The list whose rows are marked, None while another list is shown."""
        raise NotImplementedError

    @property
    def marked(self) -> Sequence[Any]:
        """The marked rows that are still there, also those that the filter hides."""
        raise NotImplementedError

    def show_marks(self) -> None:
        """Shows how many rows are marked; the rows show which."""

    def offers(self, binding: Binding) -> bool:
        """Whether the key belongs to what is shown: one rarely means all rows before they are filtered."""
        return super().offers(binding) and (binding.action != "mark_all" or bool(self.filter_words))

    def cannot_mark_all(self) -> str:
        """Says why the rows are not those that the filter means; empty when they are."""
        return ""

    def action_mark(self) -> None:
        """Marks the row under the cursor, or takes its mark off, and goes to the next."""
        listing = self.markable
        if listing is None or listing.row is None:
            self.context.say("there is nothing to mark in this list", severity="warning")
            return
        self.marks.toggle(listing.row)
        listing.action_move(1)
        self.marks_changed()

    def action_mark_all(self) -> None:
        """Marks every row that the filter shows."""
        listing = self.markable
        if listing is None or not listing.rows:
            self.context.say("there is nothing to mark in this list", severity="warning")
        elif said := self.cannot_mark_all():
            self.context.say(said, severity="warning")
        else:
            self.marks.add(listing.rows)
            self.marks_changed()

    def action_back(self) -> None:
        """Clears the filter; without one, takes all marks off; without marks, leaves an opened view."""
        if not self.query_one("#filter").has_class("-shown") and self.markable is not None and self.marked:
            self.marks.clear()
            self.marks_changed()
        else:
            super().action_back()

    def marks_changed(self) -> None:
        """Draws the marks again, and the keys that need some."""
        if listing := self.markable:
            listing.touch()
        self.show_marks()
        self.offer_keys()

    def ask_about_all(
        self,
        question: str,
        text: str,
        label: str,
        orders: Sequence[Order],
        word: str,
        said: Callable[[str, int], str],
    ) -> None:
        """Asks once, and on the answer `label` does as `act_on_all`."""

        def answered(answer: str | None) -> None:
            if answer and answer != CANCEL:
                self.act_on_all(orders, word, said)

        self.context.ask(Ask(question, text, [("all", label)]), answered)

    def act_on_all(self, orders: Sequence[Order], word: str, said: Callable[[str, int], str]) -> None:
        """Carries the orders out off the UI thread, and takes the marks off what was done.

        `word` is what becomes of each, such as `ended`; `said` words how many became that.
        """
        self.act_together(len(orders), partial(carry_out, orders), word, said)

    def act_together(self, total: int, work: Callable[[], Batch], word: str, said: Callable[[str, int], str]) -> None:
        """As `act_on_all`, but for `work` that carries out all orders by itself."""

        def finished(batch: Batch) -> None:
            self.marks.remove(batch.done)
            if self.has_widgets:
                self.marks_changed()
            if batch.done:
                self.context.say(said(word, len(batch.done)))
            if batch.failed:
                lines = [f"{name}: {error.message} {error.hint}".strip() for name, error in batch.failed]
                self.show_whole(f"{len(batch.failed):,} of {total:,} not {word}", [("why", "\n".join(lines))])

        self.context.loader.act_on_all(word, work, finished)


class ListMarking(Marking):
    """The marks on the rows of `listing`, the one list of the view."""

    def __init__(self, context: Context, key: Callable[[Any], Hashable]) -> None:
        super().__init__(context)
        self._marks = Marks(key)

    @property
    def listing(self) -> Listing[Any]:
        """The list."""
        raise NotImplementedError

    @property
    def marks(self) -> Marks:
        """The marks."""
        return self._marks

    @property
    def markable(self) -> Listing[Any]:
        """The list."""
        return self.listing
