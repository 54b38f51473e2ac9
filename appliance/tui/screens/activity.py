"""Hydrations, pushes and refreshes as they happen, newest on top."""

from __future__ import annotations

import time
from typing import Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType

from appliance.core.node.queries import NodeQueries
from appliance.tui.context import Context, OpenRepository
from appliance.tui.data.activity import HYDRATION, PUSH, REFRESH, ActivityEntry
from appliance.tui.data.follower import RATES, TIME
from appliance.tui.data.messages import ActivityRead
from appliance.tui.data.model import EVERY
from appliance.tui.screens.view import View
from appliance.tui.text import Cell, Piece, cell, client_cell, origin, percent, size, took
from appliance.tui.widgets.lines import Lines
from appliance.tui.widgets.listing import Column, Listing

READ = 500
"""Rows of each kind that are read from the database at first."""


def activity_columns(*, with_repo: bool = True) -> list[Column[ActivityEntry]]:
    """Makes the columns of a list of activity."""
    kinds = {HYDRATION: "hydrate", PUSH: "push", REFRESH: "refresh"}
    return [
        Column("UTC", lambda entry: cell(time.strftime("%H:%M:%S", time.gmtime(entry.at)), "dim"), 8, 1),
        Column("KIND", lambda entry: cell(kinds[entry.kind], "dim"), 7, 3),
        Column("HOW", lambda entry: entry.said, 12, 0),
        *([Column("REPOSITORY", lambda entry: cell(entry.repo), 16, 1, 24)] if with_repo else []),
        Column("WHAT", lambda entry: cell(entry.what), 16, 0, 40, grows=True),
        Column("BYTES", lambda entry: cell("" if entry.bytes is None else size(entry.bytes)), 8, 4, right=True),
        Column("TOOK", lambda entry: cell("" if entry.seconds is None else took(entry.seconds)), 6, 2, right=True),
        Column("CLIENT", lambda entry: client_cell(entry.client, entry.guest), 9, 5, 15),
    ]


class ActivityScreen(View):
    """Shows what happens on the node."""

    heading = "Activity"
    here = "activity"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("h", "kind('hydration')", "hydrations", tooltip="only hydrations; again for everything"),
        Binding("p", "kind('push')", "pushes", tooltip="only pushes; again for everything"),
        Binding("f", "kind('refresh')", "refreshes", tooltip="only refreshes; again for everything"),
        Binding("slash", "filter", "filter", tooltip="filter by any word of a row"),
        Binding("z", "hold", "hold", tooltip="hold the rows still; again to let them move"),
        Binding("u", "quiet", "unchanged", tooltip="show or hide refreshes that moved nothing"),
        Binding("enter", "open", "repository", show=False, tooltip="open the view of its repository"),
        Binding("escape", "back", "clear the filter", show=False),
    ]

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._kind: str | None = None
        self._quiet = False
        self._held = False

    def body(self) -> ComposeResult:
        """Yields the summary and the list."""
        yield Lines(id="summary")
        listing: Listing[ActivityEntry] = Listing(
            activity_columns(), lambda entry: entry.key, empty="reading…", id="list"
        )
        yield listing

    @property
    def listing(self) -> Listing[ActivityEntry]:
        """The list of activity."""
        return self.query_one("#list", Listing)

    def on_mount(self) -> None:
        """Focuses the list."""
        self.listing.focus()

    def reread(self) -> None:
        """Reads earlier activity once; later activity arrives as events."""
        queries = self.context.queries
        if not self.model.activity.read:
            self.context.loader.read("activity", self, lambda: read_activity(queries))

    def on_activity_read(self, message: ActivityRead) -> None:
        """Shows the rows that were read from the database."""
        self.model.activity.fill(message.hydrations, message.pushes, message.refreshes)
        self._arrange()

    def take(self, news: frozenset[str]) -> None:
        """Shows what changed."""
        super().take(news)
        if RATES in news and not self._held:
            self._arrange()
        if {TIME, RATES} & news:
            self._summarise()

    def filtered(self) -> None:
        """Lists the rows that match now."""
        self._arrange()

    def focus_body(self) -> None:
        """Moves the focus back to the list."""
        self.listing.focus()

    def action_kind(self, kind: str) -> None:
        """Shows only entries of this kind, or all again."""
        self._kind = None if self._kind == kind else kind
        self._arrange()

    def action_quiet(self) -> None:
        """Shows or hides refreshes that moved nothing."""
        self._quiet = not self._quiet
        self._arrange()

    def action_hold(self) -> None:
        """Holds the rows still so that they can be read, or lets them move again."""
        self._held = not self._held
        self._arrange()

    def on_listing_moved(self, event: Listing.Moved) -> None:
        """Says where the guest of the row under the cursor came from."""
        self._summarise()

    def on_listing_chosen(self, event: Listing.Chosen) -> None:
        """Opens the view of the entry's repository."""
        if event.row.repo in self.model.repos:
            self.post_message(OpenRepository(event.row.repo))

    def _arrange(self) -> None:
        words = self.filter_words.lower().split()

        def wanted(entry: ActivityEntry) -> bool:
            if self._kind is not None and entry.kind != self._kind:
                return False
            if entry.quiet and not self._quiet:
                return False
            return not words or all(word in _text(entry) for word in words)

        listing = self.listing
        listing.empty = "Nothing like this has happened yet." if self.model.activity.read else "reading…"
        listing.show([entry for entry in self.model.activity.rows if wanted(entry)])
        self._summarise()

    def _summarise(self) -> None:
        model = self.model
        warm, counted = model.rates.hits(EVERY)
        left: list[Piece] = [(" ", "")]
        for kind, word in ((HYDRATION, "hydrations"), (PUSH, "pushes"), (REFRESH, "refreshes")):
            shown = self._kind in (None, kind)
            left.append((f"{'●' if shown else '○'} {word}  ", "" if shown else "dim"))
        left.append((f"{'●' if self._quiet else '○'} unchanged", "" if self._quiet else "dim"))
        if self._held:
            left.append(("   ‖ held; z lets go", "warn"))
        rate = f"{model.rates.per_minute(EVERY, model.clock()):,} hyd/min, {percent(warm, counted)} hits "
        right: Cell = ((rate, "dim"),)
        summary = self.query_one("#summary", Lines)
        if (row := self.listing.row) and (who := f"{origin(row.client, row.guest)}  ").strip():
            taken = sum(len(text) for text, _ in left) + len(who) + len(rate)
            right = ((who, "accent"), *(right if taken < summary.size.width else ()))
        summary.show((tuple(left), right))


def _text(entry: ActivityEntry) -> str:
    said = "".join(text for text, _ in entry.said)
    return f"{entry.kind} {said} {entry.repo} {entry.what} {entry.client} {entry.guest or ''}".lower()


def read_activity(queries: NodeQueries) -> ActivityRead:
    """Reads the newest entries of each kind."""
    found: tuple[list[dict[str, Any]], ...] = (
        queries.hydrations(None, READ),
        queries.pushes(None, READ),
        queries.refreshes(None, READ),
    )
    return ActivityRead(*found)
