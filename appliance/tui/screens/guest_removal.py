"""Removes known guests: the one under the cursor, or all marked ones after one question that names how many."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from appliance.core.node.running import RunningNode
from appliance.tui.context import Context
from appliance.tui.data.batch import Order
from appliance.tui.data.traffic import GuestLine
from appliance.tui.screens.dialogs import CANCEL, Ask
from appliance.tui.screens.marking import ListMarking
from appliance.tui.text import count
from appliance.tui.widgets.listing import Listing


class GuestRemoval(ListMarking):
    """The marks on the guests of `listing`, and the key that removes guests."""

    def __init__(self, context: Context) -> None:
        super().__init__(context, lambda line: line.name)

    @property
    def listing(self) -> Listing[GuestLine]:
        """The list of guests."""
        raise NotImplementedError

    @property
    def lines(self) -> Sequence[GuestLine]:
        """All guests, also those that the filter hides."""
        raise NotImplementedError

    @property
    def marked(self) -> Sequence[GuestLine]:
        """The marked guests that are still there."""
        return [line for line in self.lines if self.marks.has(line)] if self.marks.keys else []

    def action_remove(self) -> None:
        """Removes the marked guests, or without marks the one under the cursor, after asking for confirmation."""
        marked, guest = self.marked, self.listing.row
        if marked and self.may_write():
            self._remove_all(marked)
        elif not marked and guest and self.may_write():
            self._remove(guest)

    def _remove(self, guest: GuestLine) -> None:
        if guest.known is None:
            self.context.say(f"{guest.name} is not known, so there is nothing to remove.")
            return
        name, node = guest.name, self._node

        def remove(answer: str | None) -> None:
            if not answer or answer == CANCEL:
                return

            def work() -> str:
                node.remove_guest(name)
                return f"{name} is no longer known"

            self.context.act(f"remove {name}", work)

        self.context.ask(
            Ask(
                f"Remove the guest {name}?",
                "Its connections end at once. Whoever comes its way is unknown from then on. "
                "What it recorded stays, under its name.",
                [("remove", "Remove")],
            ),
            remove,
        )

    def _remove_all(self, marked: Sequence[GuestLine]) -> None:
        known, node = [line.name for line in marked if line.known], self._node
        if not known:
            self.context.say("no marked guest is known, so there is nothing to remove", severity="warning")
            return
        text = (
            "Their connections end at once. Whoever comes their way is unknown from then on. "
            "What they recorded stays, under their names."
        )
        if strangers := len(marked) - len(known):
            text += f" {strangers:,} of the marked {'is' if strangers == 1 else 'are'} not known anyway."
        orders = [Order(name, name, partial(node.remove_guest, name)) for name in known]
        self.ask_about_all(f"Remove {count(len(known), 'guest')}?", text, "Remove", orders, "removed", _said)

    @property
    def _node(self) -> RunningNode:
        """Only a running serve ends connections."""
        node = self.context.node
        return RunningNode(node.layout, node.config, node.create)


def _said(word: str, number: int) -> str:
    return f"{count(number, 'guest')} {'is' if number == 1 else 'are'} {word}"
