"""What agents recorded: every session, newest first, with the turns of the chosen one."""

from __future__ import annotations

from typing import Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container

from appliance.core.models import Turn
from appliance.tui.context import Context, OpenDiff
from appliance.tui.data.activity import seconds_of
from appliance.tui.data.follower import SERVE, TIME
from appliance.tui.data.messages import SessionsRead, TurnsRead
from appliance.tui.data.rows import SessionRow
from appliance.tui.screens.fleet_lines import short_node
from appliance.tui.screens.marking import MARK, MARK_KEYS, Marking
from appliance.tui.screens.session_actions import SESSION_KEYS, SessionActions
from appliance.tui.screens.session_list import SessionList
from appliance.tui.text import Cell, cell, client_cell, count, origin, signed, size, span
from appliance.tui.widgets.lines import Lines
from appliance.tui.widgets.listing import Column, Listing


class SessionColumns:
    """Makes the columns of a list of sessions; `clock` gives Unix seconds, and `session_list` knows what is marked."""

    def __init__(self, clock: Any, session_list: SessionList) -> None:
        self._clock = clock
        self._session_list = session_list

    def all(self, *, with_repo: bool = True, with_node: bool = False) -> list[Column[SessionRow]]:
        """Returns the columns, from left to right; those of a fleet's sessions `with_node`."""
        return [
            Column("SESSION", self._name, 18 if with_node else 20, 0, 34, grows=True, order=_name_of),
            *(
                [Column("REPOSITORY", lambda session: cell(session.repo, "dim"), 14, 2, 28, order=lambda row: row.repo)]
                if with_repo
                else []
            ),
            Column("TURNS", lambda session: cell(f"{session.turns:,}"), 5, 1, right=True, order=lambda row: row.turns),
            Column("FILES", lambda session: cell(f"{session.files:,}"), 5, 3, right=True, order=lambda row: row.files),
            Column(
                "ADDED", lambda session: cell(signed("+", session.insertions), "good"), 7, 1, right=True, order=_added
            ),
            Column(
                "REMOVED",
                lambda session: cell(signed("-", session.deletions), "minus"),
                7,
                1,
                right=True,
                order=_removed,
            ),
            Column("LAST TURN", self._age, 6, 0, right=True, short="AGE", order=lambda row: -row.last_at),
            Column("SUBJECT", lambda session: cell(session.subject), 16, 4, 60, grows=True, order=_subject_of),
            Column(
                "SIZE", lambda session: cell(size(session.bytes), "dim"), 8, 6, right=True, order=lambda row: row.bytes
            ),
            Column("CLIENT", lambda session: client_cell(session.client, session.guest), 9, 5, 21, order=_who),
            # Names of nodes often differ only at their end.
            *(
                [
                    Column(
                        "NODE",
                        lambda session: cell(short_node(session.node), "dim"),
                        8,
                        2,
                        20,
                        tail=True,
                        order=lambda row: row.node or "",
                    )
                ]
                if with_node
                else []
            ),
            Column("STATE", lambda session: cell(fate(session), "accent"), 10, 7, order=fate),
        ]

    def _age(self, session: SessionRow) -> Cell:
        return cell(span(self._clock() - session.last_at))

    def _name(self, session: SessionRow) -> Cell:
        mark = MARK if self._session_list.is_marked(session) else ""
        return (mark + ("◆ " if session.kept else ""), "accent"), (session.name, "strong")


def _name_of(session: SessionRow) -> str:
    return session.name


def _subject_of(session: SessionRow) -> str:
    return session.subject.lower()


def _added(session: SessionRow) -> int:
    return session.insertions


def _removed(session: SessionRow) -> int:
    return session.deletions


def _who(session: SessionRow) -> str:
    return session.guest or session.client


def fate(session: SessionRow) -> str:
    """Returns what retention does with the session, empty if nothing special."""
    return "◆ kept" if session.kept else "▪ archived" if session.archived else ""


def turn_columns(clock: Any) -> list[Column[tuple[int, Turn, float]]]:
    """Makes the columns of a list of turns, whose rows are number, turn and Unix second."""
    return [
        Column("TURN", lambda row: cell(f"{row[0]}", "strong"), 4, 0, right=True),
        Column("AGE", lambda row: cell(span(clock() - row[2])), 6, 1, right=True),
        Column("COMMIT", lambda row: cell(row[1].commit[:10], "accent"), 10, 2),
        Column("FILES", lambda row: cell(f"{row[1].files_changed:,}"), 5, 4, right=True),
        Column("ADDED", lambda row: cell(signed("+", row[1].insertions), "good"), 7, 3, right=True),
        Column("REMOVED", lambda row: cell(signed("-", row[1].deletions), "minus"), 7, 3, right=True),
        Column("SUBJECT", lambda row: cell(row[1].subject), 20, 0, grows=True),
    ]


class SessionsScreen(SessionActions, Marking):
    """Lists every session of every repository."""

    heading = "Sessions"
    here = "sessions"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "open", "what it changed", tooltip="what it changed, or what the chosen turn did"),
        Binding("slash", "filter", "filter", tooltip="filter by name, repository, subject, guest:NAME, …"),
        *MARK_KEYS,
        *SESSION_KEYS,
        Binding("tab", "app.focus_next", "turns", show=False, tooltip="to its turns, and back"),
        Binding("escape", "back", "clear the filter", show=False, tooltip="clear the filter, then take all marks off"),
    ]

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.session_list = SessionList(None)

    def body(self) -> ComposeResult:
        """Yields the list, and the turns of the chosen session."""
        yield Lines(id="summary")
        with Container(id="halves"):
            columns = SessionColumns(self.model.clock, self.session_list).all(
                with_node=self.context.node.config.fleet.is_on
            )
            listing: Listing[SessionRow] = Listing(
                columns, lambda row: (row.repo, row.name), empty="reading…", marks=True, id="list"
            )
            yield listing
            turns: Listing[tuple[int, Turn, float]] = Listing(
                turn_columns(self.model.clock), lambda row: row[1].id, id="turns"
            )
            yield turns

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
        turns = self.query_one("#turns", Listing)
        return turns.row[0] if turns.has_focus and turns.row else None

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
            self.query_one("#turns", Listing).touch()

    def happened(self, events: list[dict[str, Any]]) -> None:
        """Reads the sessions again after a recording."""
        if any(event["event"] in ("recorded", "lost") for event in events):
            self.context.follower.soon(self.reread)

    def done(self) -> None:
        """Reads all sessions again, because one may be gone or kept now."""
        self.session_list.read(self.context, self, whole=True)

    def on_sessions_read(self, message: SessionsRead) -> None:
        """Shows the sessions that were read."""
        if self.session_list.take(message, self.context, self):
            self._arrange()
            self.offer_keys()

    def on_turns_read(self, message: TurnsRead) -> None:
        """Shows the turns, unless another session was chosen meanwhile."""
        session = self.session
        if session and (session.repo, session.name) == (message.repo, message.session):
            self.query_one("#turns", Listing).show(turn_rows(message.turns))

    def show_marks(self) -> None:
        """Shows how many are marked."""
        self._summarise()

    def action_back(self) -> None:
        """Clears the filter; without one, takes all marks off."""
        if not self.query_one("#filter").has_class("-shown") and self.session_list.marked:
            self.session_list.unmark_all()
            self.marks_changed()
        else:
            super().action_back()

    def filtered(self) -> None:
        """Lists the rows that match now."""
        self._arrange()

    def focus_body(self) -> None:
        """Moves the focus back to the list."""
        self.listing.focus()

    def on_listing_moved(self, event: Listing.Moved) -> None:
        """Reads the turns of the session under the cursor."""
        if event.listing is self.listing:
            self._read_turns()
            self._summarise()

    def on_listing_chosen(self, event: Listing.Chosen) -> None:
        """Opens what the session changed, or what the chosen turn did."""
        if session := self.session:
            self.post_message(OpenDiff(session, None if event.listing is self.listing else event.row[0]))

    def on_listing_sorted(self) -> None:
        """Says by which column the list is sorted now."""
        self._summarise()

    def _read_turns(self) -> None:
        session, queries = self.session, self.context.queries
        if session is None:
            self.query_one("#turns", Listing).show([])
            return
        repo, name = session.repo, session.name
        self.context.loader.read("turns", self, lambda: TurnsRead(repo, name, queries.turns(repo, name)))

    def _arrange(self) -> None:
        rows = self.session_list.matching(self.filter_words)
        listing = self.listing
        listing.empty = (
            f"No session matches {self.filter_words}. Escape clears the filter."
            if self.filter_words and self.session_list.total
            else "No agent has recorded anything yet: git push … HEAD:refs/agents/SESSION"
        )
        before = listing.row
        listing.show(rows)
        if listing.row is not None and listing.row != before:
            self._read_turns()
        self._summarise()

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
        marked = len(self.session_list.marked)
        left: Cell = ((f" {said}", ""), (f", {marked:,} marked" if marked else "", "accent"))
        self.query_one("#summary", Lines).show((left, ((chosen, "accent"), (right, "dim"))))


def turn_rows(turns: list[Turn]) -> list[tuple[int, Turn, float]]:
    """Returns rows for `turn_columns`, newest first, with numbers that count from 1 at the oldest."""
    return [(number, turn, seconds_of(turn.at)) for number, turn in reversed(list(enumerate(turns, 1)))]
