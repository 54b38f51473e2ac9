"""Known guests: which way each comes, what it may write and read, what it did last, and why it cannot come."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType

from appliance.core.node.running import RunningNode
from appliance.tui.context import Context, OpenGuestSessions
from appliance.tui.data.follower import SERVE, TIME
from appliance.tui.data.messages import GuestsRead
from appliance.tui.data.model import Model
from appliance.tui.data.rows import GuestRow
from appliance.tui.screens.dialogs import CANCEL, Ask
from appliance.tui.screens.view import View
from appliance.tui.text import Cell, cell, count, span, wrapped
from appliance.tui.widgets.lines import Line, Lines
from appliance.tui.widgets.listing import Column, Listing

EVERY_BEATS = 2
"""Beats between two reads, because no event tells that a guest was added or removed."""
NEVER = float("inf")


class GuestColumns:
    """Makes the columns from the model, which knows the problems."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def all(self) -> list[Column[GuestRow]]:
        """Returns the columns, from left to right."""
        return [
            Column("NAME", self._name, 12, 0, 24, order=lambda guest: guest.name),
            Column("COMES BY", self._way, 14, 1, 26, tail=True, order=lambda guest: guest.ways),
            Column(
                "SESSIONS",
                lambda guest: _patterns(guest.sessions),
                12,
                2,
                24,
                grows=True,
                order=lambda guest: guest.sessions,
            ),
            Column("REPOSITORIES", readable, 12, 4, 24, grows=True, order=lambda guest: (guest.only, guest.repos)),
            Column(
                "LAST SEEN", self._last, 6, 0, right=True, short="SEEN", order=lambda guest: -(guest.last_at or 0.0)
            ),
            Column("LAST DID", lambda guest: cell(guest.last_what), 14, 3, 30, order=lambda guest: guest.last_what),
            Column("EXPIRES", self._expires, 7, 2, right=True, order=lambda guest: guest.expires_at or NEVER),
        ]

    def _name(self, guest: GuestRow) -> Cell:
        mark = "▲ " if guest.name in self._model.guest_problems else ""
        return (mark, "warn"), (guest.name, "strong")

    def _way(self, guest: GuestRow) -> Cell:
        return cell(guest.ways, "warn" if guest.name in self._model.guest_problems else "dim")

    def _last(self, guest: GuestRow) -> Cell:
        return cell("never", "dim") if guest.last_at is None else cell(span(self._model.clock() - guest.last_at))

    def _expires(self, guest: GuestRow) -> Cell:
        if guest.expires_at is None:
            return ()
        left = guest.expires_at - self._model.clock()
        return cell(span(left)) if left > 0 else cell("over", "warn")


def _patterns(sessions: tuple[str, ...]) -> Cell:
    return cell(", ".join(sessions)) if sessions else cell("none", "dim")


def readable(guest: GuestRow) -> Cell:
    """Says what the guest may read: its own repositories, private ones too, and unless `only` every open one."""
    names = ", ".join(guest.repos)
    if guest.only:
        return (("only ", "accent"), (names, "")) if names else cell("none", "dim")
    return ((names, ""), (" and open ones", "dim")) if names else cell("open ones", "dim")


class GuestsScreen(View):
    """Lists every known guest, and explains the chosen one."""

    heading = "Guests"
    here = "guests"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "open", "sessions", tooltip="the sessions that it recorded"),
        Binding("slash", "filter", "filter", tooltip="filter by any word of a row"),
        Binding("D", "remove", "remove", tooltip="remove it, after asking"),
        Binding("s", "sort", "sort", tooltip="sort by problem, name, last or expiry"),
        Binding("escape", "back", "clear the filter", show=False),
    ]

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._guests: list[GuestRow] | None = None
        self._problems: dict[str, str] = {}
        self._sorting = 0
        self._beat = 0

    def body(self) -> ComposeResult:
        """Yields the summary, the list and the explanation."""
        yield Lines(id="summary")
        columns = GuestColumns(self.model).all()
        listing: Listing[GuestRow] = Listing(columns, lambda guest: guest.name, empty="reading…", id="list")
        yield listing
        yield Lines(id="why")

    @property
    def listing(self) -> Listing[GuestRow]:
        """The list of guests."""
        return self.query_one("#list", Listing)

    def on_mount(self) -> None:
        """Focuses the list."""
        self.listing.focus()

    def reread(self) -> None:
        """Reads all guests."""
        queries = self.context.queries
        work = lambda: GuestsRead([GuestRow.of(row) for row in queries.guests()])  # noqa: E731
        self.context.loader.read("guests", self, work)

    def take(self, news: frozenset[str]) -> None:
        """Shows what changed."""
        super().take(news)
        if TIME in news:
            self._beat += 1
            if self._beat % EVERY_BEATS == 0:
                self.reread()
        if {SERVE, TIME} & news:
            if self.model.guest_problems != self._problems:
                self._problems = self.model.guest_problems
                self._arrange()
            self.listing.touch()
            self._summarise()
            self._explain()

    def happened(self, events: list[dict[str, Any]]) -> None:
        """Reads again after a guest hydrated or recorded."""
        if any(event["event"] == "lost" or _is_of_guest(event) for event in events):
            self.context.follower.soon(self.reread)

    def done(self) -> None:
        """Reads all guests again, because one may be gone."""
        self.reread()

    def on_guests_read(self, message: GuestsRead) -> None:
        """Shows the guests that were read."""
        if message.guests != self._guests:
            self._guests = message.guests
            self._arrange()
            self._summarise()
            self._explain()

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
        self._explain()

    def on_listing_chosen(self, event: Listing.Chosen) -> None:
        """Goes to the sessions of the chosen guest."""
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

    def action_remove(self) -> None:
        """Removes the guest after asking for confirmation."""
        if not (guest := self.listing.row) or not self.may_write():
            return
        name, node = guest.name, self.context.node

        def remove(answer: str | None) -> None:
            if not answer or answer == CANCEL:
                return

            def work() -> str:
                RunningNode(node.layout, node.config, node.create).remove_guest(name)
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

    # Order

    def _orders(self) -> list[tuple[str, Callable[[GuestRow], Any]]]:
        return [
            ("problem", lambda guest: guest.name not in self._problems),
            ("name", lambda guest: guest.name),
            ("last", lambda guest: -(guest.last_at or 0.0)),
            ("expiry", lambda guest: NEVER if guest.expires_at is None else guest.expires_at),
        ]

    def _arrange(self) -> None:
        words = self.filter_words.lower().split()
        found = [guest for guest in self._guests or () if not words or all(map(self._text(guest).__contains__, words))]
        found.sort(key=lambda guest: guest.name)
        found.sort(key=self._orders()[self._sorting][1])
        self.listing.empty = self._nothing()
        self.listing.show(found)

    def _text(self, guest: GuestRow) -> str:
        """What is on screen of a guest, for the filter."""
        shown = "".join(text for text, _ in readable(guest))
        problem = self._problems.get(guest.name, "")
        sessions = " ".join(guest.sessions)
        return f"{guest.name} {guest.ways} {sessions} {shown} {guest.last_what} {guest.last_repo} {problem}".lower()

    def _nothing(self) -> str:
        if self._guests is None:
            return "Nothing can be read; the line below says why." if "guests" in self.model.problems else "reading…"
        if self._guests:
            return f"No guest matches {self.filter_words}. Escape clears the filter."
        return "No guest is known yet: gitmirror.pyz guest add NAME --session S --unix PATH"

    # The lines above and below

    def _summarise(self) -> None:
        rows, total = self.listing.rows, len(self._guests or ())
        said = count(total, "guest") if len(rows) == total else f"{len(rows):,} of {count(total, 'guest')}"
        held = len(self._problems)
        warning = f"  ▲ {held:,} cannot come" if held else ""
        order = cell(f"sorted by {self.listing.sorted_by or self._orders()[self._sorting][0]} ", "dim")
        self.query_one("#summary", Lines).show((((f" {said}", ""), (warning, "warn")), order))

    def _explain(self) -> None:
        guest = self.listing.row
        why = self.query_one("#why", Lines)
        now, width = self.model.clock(), why.size.width
        why.show(*(explain(guest, self._problems.get(guest.name), now, width) if guest else ()))


def _is_of_guest(event: dict[str, Any]) -> bool:
    return event["event"] in ("hydrated", "recorded") and event.get("guest") is not None


def explain(guest: GuestRow, problem: str | None, now: float, width: int) -> list[Line]:
    """Explains a guest in four lines: what it did last or why it cannot come, which way it comes, what it may do.

    `now` is Unix seconds, and `width` columns.
    """
    until = "known until it is removed " if guest.expires_at is None else "its time is over "
    if guest.expires_at is not None and guest.expires_at > now:
        until = f"known for another {span(guest.expires_at - now)} "
    last = "has done nothing yet"
    if guest.last_at is not None:
        last = f"{guest.last_what} in {guest.last_repo} {span(now - guest.last_at)} ago"
    first: Cell = ((f" {'▲' if problem else '●'} {guest.name} ", "warn" if problem else "good"), (last, ""))
    lines: list[Line] = [(first, cell(until, "dim"))]
    if problem:
        lines += [(cell(f"   {line}", "warn"), ()) for line in wrapped(problem, width - 4, 1)]
    roads = [
        f"by {guest.unix}_9418 (git) and {guest.unix}_9419 (HTTP)" if guest.unix else "",
        f"from {guest.address}" if guest.address else "",
        "with its token" if guest.has_token else "",
    ]
    lines.append((cell(f"   comes {', '.join(filter(None, roads))}", "dim"), ()))
    sessions = ", ".join(guest.sessions) or "no session"
    reads = ", ".join([*guest.repos, *([] if guest.only else ["every open repository"])]) or "no repository"
    return [*lines, (cell(f"   may write {sessions}; may read {reads}", "dim"), ())]
