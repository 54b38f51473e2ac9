"""Hydrations, pushes and refreshes as they happen, newest on top."""

from __future__ import annotations

import time
from typing import Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container

from appliance.core.node.queries import NodeQueries
from appliance.tui.context import Context, OpenRepository
from appliance.tui.data.activity import HYDRATION, PUSH, REFRESH, ActivityEntry
from appliance.tui.data.facts import facts_of, title_of
from appliance.tui.data.follower import RATES, TIME
from appliance.tui.data.messages import ActivityRead
from appliance.tui.data.model import EVERY
from appliance.tui.screens.opening import Opening
from appliance.tui.text import Piece, cell, client_cell, hydration_words, origin, size, took, wrapped
from appliance.tui.widgets.lines import Line, Lines
from appliance.tui.widgets.listing import Column, Listing

VAST = 150
"""Terminals of at least as many columns show the chosen row whole beside the list."""
NAME = 13
"""The columns of the names of facts."""
READ = 500
"""Rows of each kind that are read from the database at first."""


def activity_columns(*, with_repo: bool = True) -> list[Column[ActivityEntry]]:
    """Makes the columns of a list of activity."""
    kinds = {HYDRATION: "hydrate", PUSH: "push", REFRESH: "refresh"}
    return [
        Column(
            "TIME UTC",
            lambda entry: cell(time.strftime("%H:%M:%S", time.gmtime(entry.at)), "dim"),
            8,
            1,
            order=lambda entry: -entry.at,
        ),
        Column("KIND", lambda entry: cell(kinds[entry.kind], "dim"), 7, 3, order=lambda entry: entry.kind),
        Column("RESULT", lambda entry: entry.said, 12, 0, order=lambda entry: entry.said[0][0]),
        *(
            [Column("REPOSITORY", lambda entry: cell(entry.repo), 16, 1, 24, order=lambda entry: entry.repo)]
            if with_repo
            else []
        ),
        Column("WHAT", lambda entry: cell(entry.what), 16, 0, 40, grows=True, order=lambda entry: entry.what),
        Column(
            "SIZE",
            lambda entry: cell("" if entry.bytes is None else size(entry.bytes)),
            8,
            4,
            right=True,
            order=lambda entry: entry.bytes or 0,
        ),
        Column(
            "TOOK",
            lambda entry: cell("" if entry.seconds is None else took(entry.seconds)),
            6,
            2,
            right=True,
            order=lambda entry: entry.seconds or 0.0,
        ),
        Column(
            "CLIENT",
            lambda entry: client_cell(entry.client, entry.guest),
            9,
            4,
            15,
            order=lambda entry: entry.guest or entry.client,
        ),
    ]


class ActivityScreen(Opening):
    """Shows what happens on the node."""

    heading = "Activity"
    here = "activity"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "open", "open", tooltip="the row whole; for a recorded push, its diff"),
        Binding("o", "repository", "repository", tooltip="open the view of its repository"),
        Binding("h", "kind('hydration')", "hydrations", tooltip="only hydrations; again for everything"),
        Binding("p", "kind('push')", "pushes", tooltip="only pushes; again for everything"),
        Binding("f", "kind('refresh')", "refreshes", tooltip="only refreshes; again for everything"),
        Binding("slash", "filter", "filter", tooltip="filter by any word of a row"),
        Binding("z", "hold", "hold still", tooltip="hold the rows still; again to let them move"),
        Binding("u", "quiet", "unchanged too", tooltip="show or hide refreshes that moved nothing"),
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
        with Container(id="halves"):
            yield listing
            yield Lines(id="aside")

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
            self._tell_aside()

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
        """Says where the guest of the row under the cursor came from, and on a wide terminal all that is known."""
        self._summarise()
        self._tell_aside()

    def on_resize(self) -> None:
        """Shows the chosen row beside the list, or not."""
        self.set_class(self.size.width >= VAST, "-vast")
        super().on_resize()

    def on_lines_resized(self, event: Lines.Resized) -> None:
        """Wraps what stands beside the list in its new width."""
        if event.lines.id == "aside" and self.has_widgets:
            self._tell_aside()

    def _tell_aside(self) -> None:
        row, aside = self.listing.row, self.query_one("#aside", Lines)
        if row is None or not aside.size.width:
            aside.show()
            return
        lines: list[Line] = [(cell(f" {title_of(row)}", "strong"), ()), ((), ())]
        for name, text in facts_of(row, self.model.clock()):
            for number, line in enumerate(wrapped(text, aside.size.width - NAME - 2, 12) if text else ()):
                lines.append((((f" {'' if number else name:<{NAME}}", "dim"), (line, "")), ()))
        aside.show(*lines)

    def on_listing_chosen(self, event: Listing.Chosen) -> None:
        """Opens the row."""
        self.open_entry(event.row)

    def action_repository(self) -> None:
        """Opens the view of the entry's repository."""
        if (row := self.listing.row) and row.repo in self.model.repos:
            self.post_message(OpenRepository(row.repo))

    def _arrange(self) -> None:
        words = self.filter_words.lower().split()

        def wanted(entry: ActivityEntry) -> bool:
            if self._kind is not None and entry.kind != self._kind:
                return False
            if entry.quiet and not self._quiet:
                return False
            return not words or all(word in text_of(entry) for word in words)

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
        left.append((f"{'●' if self._quiet else '○'} unchanged too", "" if self._quiet else "dim"))
        if self._held:
            left.append(("   ‖ held still; z lets the rows move", "warn"))
        rate = f"{hydration_words(model.rates.per_minute(EVERY, model.clock()), warm, counted)} "
        row = self.listing.row
        who = f"{origin(row.client, row.guest)}  " if row and row.guest else ""
        summary = self.query_one("#summary", Lines)
        has_room = sum(len(text) for text, _ in left) + len(who) + len(rate) < summary.size.width
        summary.show((tuple(left), ((who, "accent"), (rate if has_room else "", "dim"))))


def text_of(entry: ActivityEntry) -> str:
    """Returns what a filter looks at, in small letters."""
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
