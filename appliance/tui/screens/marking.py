"""Marks sessions in a list, and opens how two of them differ."""

from __future__ import annotations

from textual.binding import Binding, BindingType

from appliance.tui.context import OpenDiff
from appliance.tui.data.rows import SessionRow
from appliance.tui.screens.session_list import SessionList
from appliance.tui.screens.view import View
from appliance.tui.widgets.listing import Listing

MARK_KEYS: list[BindingType] = [
    Binding("space", "mark", "mark", tooltip="mark a session, or take its mark off"),
    Binding("equals_sign", "compare", "compare", tooltip="how the second one marked differs from the first"),
]
MARK = "✓ "


class Marking(View):
    """The marks on `session_list`, which is shown in `session_listing`."""

    session_list: SessionList

    @property
    def session_listing(self) -> Listing[SessionRow] | None:
        """The list of sessions, None while another list is shown."""
        raise NotImplementedError

    def show_marks(self) -> None:
        """Shows how many sessions are marked; the rows show which."""

    def action_mark(self) -> None:
        """Marks the session under the cursor, or takes its mark off, and goes to the next."""
        listing = self.session_listing
        if listing is None or listing.row is None:
            self.context.say("sessions are marked in a list of sessions", severity="warning")
            return
        self.session_list.mark(listing.row)
        listing.action_move(1)
        self.marks_changed()

    def marks_changed(self) -> None:
        """Draws the marks again, and the key that compares, which needs two."""
        if listing := self.session_listing:
            listing.touch()
        self.show_marks()
        self.offer_keys()

    def usable(self, binding: Binding) -> bool:
        """Whether the key does something now."""
        return super().usable(binding) and (binding.action != "compare" or len(self.session_list.marked) == 2)

    def action_compare(self) -> None:
        """Opens how the session that was marked second differs from the first, or says what to mark."""
        marked = self.session_list.marked
        if len(marked) == 2 and marked[0].repo == marked[1].repo:
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
