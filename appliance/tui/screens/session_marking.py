"""Marks sessions in a list, and opens how two of them differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from textual.binding import Binding, BindingType

from appliance.tui.context import OpenComparison, OpenDiff
from appliance.tui.data.rows import SessionRow
from appliance.tui.screens.marking import MARK_KEYS, Marking, Marks
from appliance.tui.screens.session_list import SessionList
from appliance.tui.widgets.listing import Listing

SESSION_MARK_KEYS: list[BindingType] = [
    MARK_KEYS[0],
    Binding("equals_sign", "compare", "compare", tooltip="the two marked ones side by side, or as a diff"),
    *MARK_KEYS[1:],
]
SIDE_BY_SIDE = 120
"""Terminals of at least as many columns show two sessions side by side, others how the second differs."""


class SessionMarking(Marking):
    """The marks on `session_list`, which is shown in `session_listing`."""

    session_list: SessionList

    @property
    def session_listing(self) -> Listing[SessionRow] | None:
        """The list of sessions, None while another list is shown."""
        raise NotImplementedError

    @property
    def marks(self) -> Marks:
        """The marks."""
        return self.session_list.marks

    @property
    def markable(self) -> Listing[Any] | None:
        """The list of sessions while it is shown."""
        return self.session_listing

    @property
    def marked(self) -> Sequence[SessionRow]:
        """The marked sessions, in the order in which they were."""
        return self.session_list.marked

    def usable(self, binding: Binding) -> bool:
        """Whether the key does something now."""
        return super().usable(binding) and (binding.action != "compare" or len(self.marked) == 2)

    def action_compare(self) -> None:
        """Opens the two marked sessions, or says what to mark."""
        marked = self.marked
        if len(marked) == 2 and marked[0].repo == marked[1].repo:
            if self.app.size.width >= SIDE_BY_SIDE:
                self.post_message(OpenComparison(marked[0], marked[1]))
            else:
                self.post_message(OpenDiff(marked[1], against=marked[0]))
            return
        if len(marked) == 2:
            first, second = marked
            said = f"{first.name} is in {first.repo}, {second.name} in {second.repo}: mark two of one repository"
        elif len(marked) > 2:
            said = f"{len(marked)} sessions are marked: take marks off with space until two are left"
        elif marked:
            said = f"only {marked[0].name} is marked: mark one more with space"
        else:
            said = "no session is marked: mark two with space"
        self.context.say(said, severity="warning")
