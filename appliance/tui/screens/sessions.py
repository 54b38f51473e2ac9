"""What agents recorded: every session, newest first, with the turns, notes and files of the chosen one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container

from appliance.core.models import FileChange, Turn
from appliance.core.units import format_size
from appliance.tui.context import Context, OpenDiff
from appliance.tui.data.follower import SERVE, TIME
from appliance.tui.data.messages import ChangedRead, ReadFailed, SessionsFound, SessionsRead, TurnsRead
from appliance.tui.data.rows import SessionRow
from appliance.tui.data.session_query import SYNTAX, SessionQuery, parse_query
from appliance.tui.screens.session_actions import SESSION_KEYS
from appliance.tui.screens.session_batches import SessionBatches
from appliance.tui.screens.session_columns import SessionColumns, fate, file_columns, turn_columns, turn_rows
from appliance.tui.screens.session_list import SessionList
from appliance.tui.screens.session_marking import SESSION_MARK_KEYS
from appliance.tui.screens.session_search import SessionSearch
from appliance.tui.screens.view import WIDE
from appliance.tui.text import Cell, cell, count, origin, wrapped
from appliance.tui.widgets.lines import Line, Lines
from appliance.tui.widgets.listing import Listing

MOST_DETAILS = 6
"""The most lines of notes and attachments that stand beside a list of sessions."""
MOST_BELOW = 3
"""The most that stand below it, where the terminal is narrow."""
MOST_TURNS = 12
"""The most lines of turns that stand above the files that a session changed."""


class SessionsScreen(SessionBatches):
    """Lists every session of every repository."""

    heading = "Sessions"
    here = "sessions"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "open", "what it changed", tooltip="what it changed, or what the chosen turn did"),
        Binding("slash", "filter", "filter", tooltip="find by words, path:FILE, since:2h, before:7d, …"),
        *SESSION_MARK_KEYS,
        *SESSION_KEYS,
        Binding("tab", "app.focus_next", "turns", show=False, tooltip="to its turns, and back"),
        Binding("escape", "back", "clear the filter", show=False, tooltip="clear the filter, then take all marks off"),
    ]

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.session_list = SessionList(None)
        self._query = SessionQuery()
        self._search = SessionSearch(context, self, self._arrange)
        self._details: Mapping[int, Mapping[str, Any]] = {}

    def body(self) -> ComposeResult:
        """Yields the list; the turns, notes and files of the chosen session; and what the filter means."""
        yield Lines(id="summary")
        with Container(id="halves"):
            columns = SessionColumns(self.model.clock, self.session_list.marks).all(
                with_node=self.context.node.config.fleet.is_on
            )
            listing: Listing[SessionRow] = Listing(
                columns, lambda row: (row.repo, row.name), empty="reading…", marks=True, id="list"
            )
            yield listing
            with Container(id="side"):
                turns: Listing[tuple[int, Turn, float]] = Listing(
                    turn_columns(self.model.clock), lambda row: row[1].id, id="turns"
                )
                yield turns
                yield Lines(id="details")
                changed: Listing[FileChange] = Listing(file_columns(), lambda file: file.path, id="changed")
                yield changed
        yield Lines(id="meaning")

    @property
    def listing(self) -> Listing[SessionRow]:
        """The list of sessions."""
        return self.query_one("#list", Listing)

    @property
    def session_listing(self) -> Listing[SessionRow]:
        """The list of sessions."""
        return self.listing

    @property
    def session(self) -> SessionRow | None:
        """The session under the cursor."""
        return self.listing.row

    @property
    def turn(self) -> int | None:
        """The chosen turn while the list of turns has the focus, otherwise None."""
        row = self.turns.row
        return row[0] if self.turns.has_focus and row else None

    @property
    def turns(self) -> Listing[tuple[int, Turn, float]]:
        """The turns of the session under the cursor."""
        return self.query_one("#turns", Listing)

    @property
    def changed(self) -> Listing[FileChange]:
        """The files that the session under the cursor changed."""
        return self.query_one("#changed", Listing)

    def on_mount(self) -> None:
        """Focuses the list."""
        self.listing.focus()

    def reread(self) -> None:
        """Reads the newest sessions."""
        self.session_list.read(self.context, self)

    def take(self, news: frozenset[str]) -> None:
        """Shows what changed."""
        super().take(news)
        if {TIME, SERVE} & news:
            self.listing.touch()
            self.turns.touch()

    def happened(self, events: list[dict[str, Any]]) -> None:
        """Reads the sessions again after a recording."""
        if any(event["event"] in ("recorded", "lost") for event in events):
            self.context.follower.soon(self.reread, self)
            self.context.follower.soon(self._search.again, self)

    def done(self) -> None:
        """Reads all sessions again, because one may be gone or kept now."""
        self.session_list.read(self.context, self, whole=True)

    def on_sessions_read(self, message: SessionsRead) -> None:
        """Shows the sessions that were read."""
        if self.session_list.take(message, self.context, self):
            self._arrange()
            self.offer_keys()

    def on_sessions_found(self, message: SessionsFound) -> None:
        """Lists what the search found."""
        if self._search.take(message):
            self._arrange()

    def on_turns_read(self, message: TurnsRead) -> None:
        """Shows the turns with their notes, unless another session was chosen meanwhile."""
        if not self._is_chosen(message.repo, message.session):
            return
        self._details = message.details
        self.turns.show(turn_rows(message.turns))
        self._show_details()
        self._fit()
        if message.turns and message.turns[-1].away:
            self._cannot_list_files("another node has them; enter brings them")
        elif self.size.width >= WIDE:
            self._read_files()

    def on_changed_read(self, message: ChangedRead) -> None:
        """Shows the files that the session changed, unless another was chosen meanwhile."""
        if self._is_chosen(message.repo, message.session):
            self.changed.empty = "no file differs"
            self.changed.show(message.files)

    def show_marks(self) -> None:
        """Shows how many are marked."""
        self._summarise()

    def cannot_mark_all(self) -> str:
        """Says that more rows may come, or that the filter is wrong."""
        return "still searching: mark all when the search has ended" if self._search.is_searching else ""

    def filtered(self) -> None:
        """Lists the rows that match now, and searches for the others."""
        self._query = parse_query(self.filter_words, self.model.clock())
        self._search.want(self._query.sought)
        self._arrange()

    def action_filter(self) -> None:
        """Opens the filter line, and says what can be typed."""
        super().action_filter()
        self._explain()

    def focus_body(self) -> None:
        """Moves the focus back to the list."""
        self.listing.focus()
        self._explain()

    def on_listing_moved(self, event: Listing.Moved) -> None:
        """Reads the turns of the session under the cursor, or shows the notes of the turn."""
        if event.listing is self.listing:
            self._read_turns()
            self._summarise()
        elif event.listing is self.turns:
            self._show_details()

    def on_listing_chosen(self, event: Listing.Chosen) -> None:
        """Opens what the session changed, or what the chosen turn did."""
        if session := self.session:
            self.post_message(OpenDiff(session, event.row[0] if event.listing is self.turns else None))

    def on_resize(self) -> None:
        """Puts the turns beside the list, or below it."""
        super().on_resize()
        self._fit()
        if self.size.width >= WIDE and not self.changed.rows:
            self._read_turns()

    def _is_chosen(self, repo: str, name: str) -> bool:
        session = self.session
        return session is not None and (session.repo, session.name) == (repo, name)

    def on_listing_sorted(self) -> None:
        """Says by which column the list is sorted now."""
        self._summarise()

    def _read_turns(self) -> None:
        session, queries = self.session, self.context.queries
        if session is None:
            self.turns.show([])
            self._cannot_list_files("")
            self._show_details()
            return
        repo, name = session.repo, session.name

        def work() -> TurnsRead:
            return TurnsRead(repo, name, queries.turns(repo, name), queries.details(repo, name))

        self.context.loader.read("turns", self, work)

    def _read_files(self) -> None:
        """Reads the files of the session; while the cursor moves on, only the newest request waits for its turn."""
        session, sessions = self.session, self.context.sessions
        if session is None:
            return
        repo, name = session.repo, session.name

        def work() -> ChangedRead:
            return ChangedRead(repo, name, sessions.files(sessions.compare_listed(repo, name, None, None)))

        def failed(message: ReadFailed) -> None:
            if self.has_widgets and self._is_chosen(repo, name):
                self._cannot_list_files(message.error.message)

        self.context.loader.read("files of the chosen session", self, work, failed=failed)

    def _cannot_list_files(self, why: str) -> None:
        self.changed.empty = why
        self.changed.show([])

    def _show_details(self) -> None:
        row = self.turns.row
        details = self._details.get(row[1].id) if row else None
        lines: list[Line] = []
        if row and details:
            lines += [
                (((" note ", "dim"), (f"{key}: ", "strong"), (value, "")), ())
                for key, value in details["notes"].items()
            ]
            lines += [
                (((" file ", "dim"), (file["name"], "strong")), cell(f"{format_size(file['size'])} ", "dim"))
                for file in details["attachments"]
            ]
            most = MOST_DETAILS if self.size.width >= WIDE else MOST_BELOW
            if len(lines) > most:
                more = f" and {len(lines) - most + 1:,} more: v shows all"
                lines = [*lines[: most - 1], (cell(more, "dim"), ())]
        shown = self.query_one("#details", Lines)
        shown.styles.height = len(lines)
        shown.show(*lines)

    def _fit(self) -> None:
        """Gives the turns the lines that they need, and the files the rest; below the list, there are no files."""
        self.turns.styles.height = min(len(self.turns.rows) + 1, MOST_TURNS) if self.size.width >= WIDE else "1fr"

    def _arrange(self) -> None:
        rows = self.session_list.matching(self._query, self._search.found)
        listing = self.listing
        listing.empty = self._nothing()
        before = listing.row
        listing.show(rows)
        if listing.row is None or listing.row != before:
            self._read_turns()
        self._summarise()
        self._explain()

    def _nothing(self) -> str:
        """Says why no row is listed."""
        if not self.session_list.total:
            return "No agent has recorded anything yet: git push … HEAD:refs/agents/SESSION"
        if self._query.wrong or self._search.wrong:
            return self._query.wrong or self._search.wrong
        if self._search.is_searching:
            return "searching…"
        return f"No session matches {self.filter_words}. {self._query.advice}Escape clears the filter."

    def _explain(self) -> None:
        """Says below the list what the filter means, or what can be typed."""
        wrong = self._query.wrong or self._search.wrong
        is_open = self.query_one("#filter").has_class("-shown")
        text = wrong or self._query.meaning or SYNTAX
        left = self._search.found.left if self._query.sought else 0
        text += f" · {count(left, 'turn')} not searched yet" if left and not wrong else ""
        lines = wrapped(text, self.size.width - 3, 2) if is_open else []
        meaning = self.query_one("#meaning", Lines)
        meaning.styles.height = len(lines)
        meaning.show(*((cell(f" {line}", "warn" if wrong else "dim"), ()) for line in lines))

    def _summarise(self) -> None:
        rows, listing, total = self.listing.rows, self.listing, self.session_list.total
        said = count(total, "session") if len(rows) == total else f"{len(rows):,} of {count(total, 'session')}"
        right = (
            f"sorted by {listing.sorted_by} "
            if listing.sorted_by
            else "newest first "
            if len(self.session_list.rows) >= total
            else f"{len(self.session_list.rows):,} read so far "
        )
        row = listing.row
        chosen = "".join(f"{word}  " for word in (origin(row.client, row.guest), fate(row)) if word) if row else ""
        marked = len(self.marked)
        searching = "  searching…" if self._search.is_searching else ""
        left: Cell = ((f" {said}", ""), (f", {marked:,} marked" if marked else "", "accent"), (searching, "dim"))
        self.query_one("#summary", Lines).show((left, ((chosen, "accent"), (right, "dim"))))
