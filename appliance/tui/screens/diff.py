"""What an agent changed in a session or in one turn of it, or how two sessions differ: the files, and their diffs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.widgets import Input

from appliance.core.models import FileChange, Turn
from appliance.core.units import format_size
from appliance.tui.context import Context, GoTo
from appliance.tui.data.diffs import diff_lines
from appliance.tui.data.follower import SERVE
from appliance.tui.data.messages import DiffRead, FilesRead, ReadFailed, TurnsRead
from appliance.tui.data.rows import DiffLine, SessionRow
from appliance.tui.screens.searching import SEARCH_KEYS, Searching
from appliance.tui.screens.session_actions import SESSION_KEYS, SessionActions
from appliance.tui.screens.view import WIDE
from appliance.tui.text import Cell, Piece, cell, count, origin, signed, wrapped
from appliance.tui.widgets.diffview import DiffView
from appliance.tui.widgets.lines import Line, Lines
from appliance.tui.widgets.listing import Column, Listing

LIMIT = 512 * 2**10
"""The most bytes of one file's diff that are shown."""


class DiffScreen(SessionActions, Searching):
    """Shows the diff of `session`; `turn` is None for the whole session.

    With `against`, shows how the session, or that turn of it, differs from the last turn of another one.
    """

    heading = "Diff"
    here = "sessions"
    opened = True
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "back", "back"),
        *SEARCH_KEYS,
        Binding("n", "file(1)", "next file"),
        Binding("N,p", "file(-1)", "previous file", show=False),
        Binding("right_square_bracket", "turn(1)", "next turn", tooltip="what the next turn changed"),
        Binding("left_square_bracket", "turn(-1)", "previous turn", show=False, tooltip="what the turn before changed"),
        Binding("w", "whole", "whole session", tooltip="what the whole session changed"),
        Binding("o", "others", "who touched it", tooltip="the sessions that touched this file"),
        Binding("tab", "app.focus_next", "files", show=False, tooltip="to the list of files, and back"),
        *SESSION_KEYS,
    ]

    def __init__(
        self, context: Context, session: SessionRow, turn: int | None = None, against: SessionRow | None = None
    ) -> None:
        super().__init__(context)
        self._session = session
        self._turn = turn
        self._against = against
        self._note = ""
        self._turns: list[Turn] = []
        self._details: Mapping[int, Mapping[str, Any]] = {}
        self._files: list[FileChange] | None = None

    @property
    def session(self) -> SessionRow:
        """The session that is shown."""
        return self._session

    @property
    def turn(self) -> int | None:
        """The turn that is shown, None for the whole session."""
        return self._turn

    @property
    def against(self) -> SessionRow | None:
        """The session that it is compared with."""
        return self._against

    def body(self) -> ComposeResult:
        """Yields the title, the files, and the diff of the chosen file."""
        yield Lines(id="title")
        with Container(id="halves"):
            files: Listing[FileChange] = Listing(
                [
                    Column("FILE", self._path, 12, 0, grows=True, tail=True, order=lambda file: file.path),
                    Column("ADDED", self._added, 6, 0, right=True, order=lambda file: file.insertions),
                    Column("REMOVED", self._removed, 7, 0, right=True, order=lambda file: file.deletions),
                ],
                lambda file: file.path,
                empty="reading…",
                id="list",
            )
            yield files
            yield DiffView(id="diff")
        yield Input(id="search", placeholder="search; enter keeps it, escape clears it", compact=True)

    @property
    def files(self) -> Listing[FileChange]:
        """The list of files."""
        return self.query_one("#list", Listing)

    def on_mount(self) -> None:
        """Focuses the diff."""
        self.diff.focus()

    def reread(self) -> None:
        """Reads the turns, and the files unless they are known."""
        self._read_turns()
        if self._files is None:
            self._read()

    def take(self, news: frozenset[str]) -> None:
        """Shows what changed."""
        super().take(news)
        if SERVE in news:
            self._say()

    def happened(self, events: list[dict[str, Any]]) -> None:
        """Reads again after a recording in this session, or in the one that it is compared with."""
        recorded = {(event["repo"], event["session"]) for event in events if event["event"] == "recorded"}
        if (self._session.repo, self._session.name) in recorded:
            self.context.follower.soon(self._read_turns, self)
        if self._against and (self._against.repo, self._against.name) in recorded:
            self.context.follower.soon(self._read, self)

    def on_turns_read(self, message: TurnsRead) -> None:
        """Takes the turns; when one was added, the diff of the whole session is read again."""
        grew = bool(self._turns) and len(message.turns) > len(self._turns)
        self._turns, self._details = message.turns, message.details
        if grew and self._turn is None:
            self._read()
        self._say()

    def on_files_read(self, message: FilesRead) -> None:
        """Shows the files, unless another turn was chosen meanwhile."""
        if message.turn != self._turn:
            return
        self._files, self._note = message.files, message.note
        self.filtered()
        self._fit_files()
        if not message.files:
            said = "both have the same files." if self._against else "the turn changed no file."
            self.diff.show([], f"Nothing differs: {said}")
        self._say()
        self._read_file()

    def on_resize(self) -> None:
        """Puts the list of files beside the diff, or above it."""
        super().on_resize()
        self._fit_files()

    def _fit_files(self) -> None:
        beside = self.size.width >= WIDE
        self.files.styles.height = "1fr" if beside else min(len(self._files or ()), 6) + 2

    def on_diff_read(self, message: DiffRead) -> None:
        """Shows the diff of the file, unless another was chosen meanwhile."""
        row = self.files.row
        if row is not None and (message.turn, message.path) == (self._turn, row.path):
            said = "binary: nothing to show" if row.binary else "no line differs: its mode changed, or it was renamed"
            self.diff.show(message.lines, said)
            self._say()

    def cannot_read(self, message: ReadFailed) -> None:
        """Shows the error; the commit may be gone with its session."""
        if not self.has_widgets:
            # The view was left while the diff was read.
            return
        self.diff.show([], f"{message.error.message} {message.error.hint}".strip())
        self.files.empty = ""
        self.files.show([])

    def on_listing_moved(self, event: Listing.Moved) -> None:
        """Reads the diff of the file under the cursor."""
        self._read_file()

    def on_listing_chosen(self, event: Listing.Chosen) -> None:
        """Focuses the diff of the chosen file."""
        self.diff.focus()

    def action_file(self, by: int) -> None:
        """Goes to the next file, or to the one before."""
        self.files.action_move(by)

    def action_filter(self) -> None:
        """Opens the field for a search in the text, or for a filter of the list of files while that has the focus."""
        self.open_field("filter" if self.files.has_focus else "search")

    def filtered(self) -> None:
        """Lists the files whose path has all the words of the filter."""
        words, files = self.filter_words.lower().split(), self._files or []
        self.files.empty = "No path matches. Escape clears the filter." if files else "no file differs"
        self.files.show(
            [file for file in files if all(word in file.path.lower() for word in words)] if words else files
        )

    def tell_search(self) -> None:
        """Shows at which match the text is."""
        self._say()

    def action_turn(self, by: int) -> None:
        """Goes to the next or previous turn; from the whole session to its first or last turn.

        With another session, the whole session is its last turn already.
        """
        last = len(self._turns)
        if last:
            whole = last if self._against else 0 if by > 0 else last + 1
            here = self._turn if self._turn is not None else whole
            self._choose(max(1, min(last, here + by)))

    def action_whole(self) -> None:
        """Goes back to the whole session."""
        self._choose(None)

    def action_others(self) -> None:
        """Goes to the sessions of the repository that touched the chosen file."""
        if row := self.files.row:
            self.post_message(GoTo("sessions", f'repo:{self._session.repo} path:"{row.path}"'))

    def focus_body(self) -> None:
        """Moves the focus back to the diff."""
        self.diff.focus()

    def _choose(self, turn: int | None) -> None:
        if turn != self._turn:
            self._turn = turn
            self._read()
            self._say()

    def _read_turns(self) -> None:
        session, queries = self._session, self.context.queries
        repo, name = session.repo, session.name

        def work() -> TurnsRead:
            return TurnsRead(repo, name, queries.turns(repo, name), queries.details(repo, name))

        self.context.loader.read("turns of a diff", self, work)

    def _read(self) -> None:
        turn, compared, sessions = self._turn, self._compared(), self.context.sessions

        def work() -> FilesRead:
            comparison = sessions.compare_listed(*compared)
            return FilesRead(turn, sessions.files(comparison), comparison.note)

        self.context.loader.read("files", self, work, failed=self.cannot_read)

    def _compared(self) -> tuple[str, str, int | None, str | None]:
        """Returns what `Sessions.compare_listed` takes."""
        against = self._against.name if self._against else None
        return self._session.repo, self._session.name, self._turn, against

    def _read_file(self) -> None:
        row, turn, compared, sessions = self.files.row, self._turn, self._compared(), self.context.sessions
        if row is None:
            return

        def work() -> DiffRead:
            text, cut = sessions.file_diff(sessions.compare_listed(*compared), row, LIMIT)
            lines = diff_lines(text, row.path)
            if cut:
                said = f"cut here, after {format_size(LIMIT)}: the key e exports all of it"
                lines.append(DiffLine("!", None, None, ((said, "accent"),)))
            return DiffRead(turn, row.path, lines)

        self.context.loader.read("diff", self, work, failed=self.cannot_read)

    def _say(self) -> None:
        session, turns = self._session, self._turns
        where: Piece = (f" in {session.repo}  ", "dim")
        left: list[Piece] = [(f" {session.name}", "strong"), where]
        if self._against:
            left = [(" +", "good"), (f" {session.name}  ", "strong")]
        total = len(turns) or session.turns
        if self._turn is None and self._against:
            which = f"turn {total} of {total}  "
        elif self._turn is None:
            which = f"{'all ' if len(turns) > 1 else ''}{count(total, 'turn')}  "
        else:
            which = f"turn {self._turn} of {len(turns)}  "
            if self._turn <= len(turns):
                left.append((turns[self._turn - 1].subject, ""))
        shown = turns[(self._turn or total) - 1] if (self._turn or total) <= len(turns) else session
        if who := origin(shown.client, shown.guest):
            left.append((f"{'  ' if self._turn else ''}by {who}", "dim"))
        right: Cell = (*self.found, (which, "accent"))
        if self._files is not None:
            added, gone = sum(file.insertions for file in self._files), sum(file.deletions for file in self._files)
            said = count(len(self._files), "file")
            right += (f"{said}  ", ""), (f"{signed('+', added)} ", "good"), (f"{signed('-', gone)} ", "minus")
        lines: list[Line] = [(tuple(left), right)]
        if self._against:
            other = (" -", "minus"), (f" {self._against.name}", "strong"), ("  last turn", "dim")
            lines.append((other, (where,)))
        for number, text in enumerate(wrapped(self._note, self.size.width - 5, 3) if self._note else ()):
            lines.append((((" ▲ " if number == 0 else "   ", "warn"), (text, "")), ()))
        words = self._words()
        for text in wrapped(words, self.size.width - 5, 3) if words else ():
            lines.append((((f"   {text}", "dim"),), ()))
        title = self.query_one("#title", Lines)
        title.styles.height = len(lines)
        title.show(*lines)

    def _words(self) -> str:
        """The notes and attachments of the turn that is shown: the chosen one, or the only one."""
        number = self._turn or len(self._turns)
        if not 1 <= number <= len(self._turns) or (self._turn is None and number > 1):
            return ""
        details = self._details.get(self._turns[number - 1].id, {"notes": {}, "attachments": []})
        words = [f"{key}={value}" for key, value in details["notes"].items()]
        return "  ".join(
            [*words, *(f"{file['name']} ({format_size(file['size'])})" for file in details["attachments"])]
        )

    @staticmethod
    def _added(file: FileChange) -> Cell:
        return cell(_number("+", file.insertions, file), "good")

    @staticmethod
    def _removed(file: FileChange) -> Cell:
        return cell(_number("-", file.deletions, file), "minus")

    @staticmethod
    def _path(file: FileChange) -> Cell:
        directory, slash, name = file.path.rpartition("/")
        was = f"  was {file.before}" if file.before != file.path else ""
        return (directory + slash, "dim"), (name, ""), (was, "dim")


def _number(sign: str, number: int, file: FileChange) -> str:
    return ("binary" if sign == "+" else "") if file.binary else signed(sign, number)
