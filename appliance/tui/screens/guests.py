"""Guests: who is here, by which road, how fast; what each did last, what it may do, and why it cannot come."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType

from appliance.tui.context import Context, OpenGuestSessions
from appliance.tui.data.follower import SERVE, TIME
from appliance.tui.data.messages import GuestSessionsRead, GuestsRead, TrafficRead
from appliance.tui.data.rows import GuestRow, SessionRow
from appliance.tui.data.traffic import HOUR, KEPT, GuestLine, Traffic
from appliance.tui.screens.guest_lines import NEVER, GuestColumns, explain, words_of
from appliance.tui.screens.guest_removal import GuestRemoval
from appliance.tui.screens.marking import MARK_KEYS
from appliance.tui.text import cell, count
from appliance.tui.widgets.lines import Lines
from appliance.tui.widgets.listing import Listing

EVERY_BEATS = 2
"""Beats between two reads of who is known, because no event tells that a guest was added or removed."""
MOST_SESSIONS = 5
"""Sessions of the chosen guest that are shown."""


class GuestsScreen(GuestRemoval):
    """Lists known guests and whoever is or was served, and tells all of the chosen one."""

    heading = "Guests"
    here = "guests"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "open", "sessions", tooltip="the sessions that it recorded"),
        Binding("slash", "filter", "filter", tooltip="filter by any word of a row"),
        *MARK_KEYS,
        Binding("D", "remove", "remove", tooltip="remove it, or all marked ones, after asking"),
        Binding("s", "sort", "sort", tooltip="sort by trouble, name, last, hydrations or expiry"),
        Binding("escape", "back", "clear the filter", show=False, tooltip="clear the filter, then take all marks off"),
    ]

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._guests: list[GuestRow] | None = None
        self._disks: Mapping[str, int] = {}
        self._traffic = Traffic()
        self._lines: list[GuestLine] = []
        self._sessions: tuple[str, list[SessionRow]] = ("", [])
        self._problems: dict[str, str] = {}
        self._sorting = 0
        self._beat = 0

    def body(self) -> ComposeResult:
        """Yields the summary, the list and the explanation."""
        yield Lines(id="summary")
        columns = GuestColumns(self.model, self.marks).all()
        listing: Listing[GuestLine] = Listing(columns, lambda line: line.name, empty="reading…", marks=True, id="list")
        yield listing
        yield Lines(id="why")

    @property
    def listing(self) -> Listing[GuestLine]:
        """The list of guests."""
        return self.query_one("#list", Listing)

    @property
    def lines(self) -> Sequence[GuestLine]:
        """All guests."""
        return self._lines

    def on_mount(self) -> None:
        """Focuses the list."""
        self.listing.focus()

    def reread(self) -> None:
        """Reads all guests, and what they are and were sent."""
        queries = self.context.queries
        work = lambda: GuestsRead([GuestRow.of(row) for row in queries.guests()], queries.disks_by_guest())  # noqa: E731
        self.context.loader.read("guests", self, work)
        self._read_traffic()
        self._read_sessions(anew=True)

    def _read_traffic(self) -> None:
        queries, since, last = self.context.queries, self.model.clock() - HOUR, self._traffic.last_id
        work = lambda: TrafficRead(queries.transfers(), queries.hydrations_since(since, last, KEPT))  # noqa: E731
        self.context.loader.read("traffic", self, work)

    def _read_sessions(self, *, anew: bool = False) -> None:
        """Reads the sessions of the chosen guest, unless they are there."""
        line, queries = self.listing.row, self.context.queries
        if line is None or line.known is None or (line.name == self._sessions[0] and not anew):
            return
        name = line.name

        def work() -> GuestSessionsRead:
            found = queries.sessions_of(name, MOST_SESSIONS)
            return GuestSessionsRead(name, [SessionRow.of({"subject": "", **row}) for row in found])

        self.context.loader.read("sessions of a guest", self, work)

    def take(self, news: frozenset[str]) -> None:
        """Shows what changed."""
        super().take(news)
        if TIME in news:
            self._beat += 1
            if self._beat % EVERY_BEATS == 0:
                self.reread()
            else:
                self._read_traffic()
        if {SERVE, TIME} & news:
            if self.model.guest_problems != self._problems:
                self._problems = self.model.guest_problems
                self._arrange()
            self.listing.touch()
            self._summarise()
            self._explain()

    def happened(self, events: list[dict[str, Any]]) -> None:
        """Reads again after a guest recorded, or began or ended a hydration."""
        if any(event["event"] == "lost" or _is_of_guest(event) for event in events):
            self.context.follower.soon(self.reread, self)
        elif any(event["event"] in ("hydrating", "hydrated") for event in events):
            self.context.follower.soon(self._read_traffic, self)

    def done(self) -> None:
        """Reads all guests again, because one may be gone."""
        self.reread()

    def on_guests_read(self, message: GuestsRead) -> None:
        """Shows the guests that were read."""
        if (message.guests, message.disks) != (self._guests, self._disks):
            self._guests, self._disks = message.guests, message.disks
            self._collect()

    def on_traffic_read(self, message: TrafficRead) -> None:
        """Shows what guests are sent, and how that compares."""
        runs = self._traffic.look(message.transfers)
        if self._traffic.take(message.ended, self.model.clock()) or runs:
            self._collect()

    def on_guest_sessions_read(self, message: GuestSessionsRead) -> None:
        """Shows the sessions of the chosen guest."""
        self._sessions = message.guest, message.sessions
        self._explain()

    def _collect(self) -> None:
        """Makes the list anew."""
        self._lines = self._traffic.lines(self._guests or (), self._disks)
        self._arrange()
        self._summarise()
        self._explain()

    def show_marks(self) -> None:
        """Shows how many are marked."""
        self._summarise()

    def filtered(self) -> None:
        """Lists the rows that match now."""
        self._arrange()
        self._summarise()
        self._explain()

    def focus_body(self) -> None:
        """Moves the focus back to the list."""
        self.listing.focus()

    def on_listing_moved(self, event: Listing.Moved) -> None:
        """Explains the guest under the cursor."""
        self._read_sessions()
        self._explain()

    def on_listing_chosen(self, event: Listing.Chosen) -> None:
        """Goes to the sessions of the chosen guest."""
        if event.row.known is None:
            self.context.say(f"{event.row.name} is not known by name, so its sessions cannot be told from others'.")
            return
        self.post_message(OpenGuestSessions(event.row.name))

    def on_listing_sorted(self) -> None:
        """Says by which column the list is sorted now."""
        self._summarise()

    def action_sort(self) -> None:
        """Sorts by the next order."""
        self.listing.unsort()
        self._sorting = (self._sorting + 1) % len(self._orders())
        self._arrange()
        self._summarise()

    # Order

    def _orders(self) -> list[tuple[str, Callable[[GuestLine], Any]]]:
        return [
            ("trouble", self._trouble),
            ("name", lambda line: line.name),
            ("last", lambda line: (not line.running, -_last_at(line))),
            ("hydrations", lambda line: -line.hour),
            ("expiry", lambda line: (line.known and line.known.expires_at) or NEVER),
        ]

    def _trouble(self, line: GuestLine) -> tuple[bool, float, bool, bool]:
        """Those that cannot come first, then the slowest, then those that are served, then those that are known."""
        factor = line.slow.factor if line.slow else 0.0
        return line.name not in self._problems, -factor, not line.running, line.known is None

    def _arrange(self) -> None:
        words = self.filter_words.lower().split()
        found = [line for line in self._lines if not words or all(map(self._text(line).__contains__, words))]
        found.sort(key=lambda line: line.name)
        found.sort(key=self._orders()[self._sorting][1])
        self.listing.empty = self._nothing()
        self.listing.show(found)

    def _text(self, line: GuestLine) -> str:
        """What is on screen of a guest, for the filter."""
        return words_of(line, self._problems.get(line.name, ""))

    def _nothing(self) -> str:
        if self._guests is None:
            return "Nothing can be read; the line below says why." if "guests" in self.model.problems else "reading…"
        if self._lines:
            return f"No guest matches {self.filter_words}. Escape clears the filter."
        return "No guest is known yet: gitmirror.pyz guest add NAME --session S --unix PATH"

    # The lines above and below

    def _summarise(self) -> None:
        rows, total = self.listing.rows, len(self._lines)
        said = count(total, "guest") if len(rows) == total else f"{len(rows):,} of {count(total, 'guest')}"
        known = sum(line.known is not None for line in self._lines)
        said += f", {known:,} known" if known != total else ""
        served = sum(bool(line.running) for line in self._lines)
        held, slow = len(self._problems), sum(line.slow is not None for line in self._lines)
        warnings = [f"  ▲ {held:,} cannot come"] if held else []
        warnings += [f"  ▲ {slow:,} slow"] if slow else []
        now = f"  ◌ {served:,} served" if served else ""
        order = cell(f"sorted by {self.listing.sorted_by or self._orders()[self._sorting][0]} ", "dim")
        marked = len(self.marked)
        left = (f" {said}", ""), (f", {marked:,} marked" if marked else "", "accent"), ("".join(warnings), "warn")
        self.query_one("#summary", Lines).show(((*left, (now, "accent")), order))

    def _explain(self) -> None:
        line = self.listing.row
        why = self.query_one("#why", Lines)
        if line is None:
            why.show()
            return
        sessions = self._sessions[1] if self._sessions[0] == line.name else []
        now, width = self.model.clock(), why.size.width
        told = explain(line, self._problems.get(line.name), self._traffic, sessions, now, width)
        why.show(*told[: max(1, why.size.height)])


def _last_at(line: GuestLine) -> float:
    known = (line.known.last_at if line.known else None) or 0.0
    return max(known, line.last.at if line.last else 0.0)


def _is_of_guest(event: dict[str, Any]) -> bool:
    return event["event"] == "recorded" and event.get("guest") is not None
