"""Two sessions side by side: which files each changed, and what each changed in the chosen one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container

from appliance.core.models import FileChange
from appliance.core.node.sessions import Sessions
from appliance.core.units import format_size
from appliance.tui.context import Context, OpenDiff
from appliance.tui.data.diffs import diff_lines
from appliance.tui.data.follower import SERVE, TIME
from appliance.tui.data.messages import ComparisonRead, PairRead, ReadFailed
from appliance.tui.data.rows import DiffLine, FilePair, SessionRow
from appliance.tui.screens.session_columns import file_number
from appliance.tui.screens.view import View
from appliance.tui.text import Cell, Piece, cell, count, plain, signed, span
from appliance.tui.widgets.diffview import DiffView
from appliance.tui.widgets.lines import Line, Lines
from appliance.tui.widgets.listing import Column, Listing

LIMIT = 512 * 2**10
"""The most bytes of one file's diff that are shown on either side."""
ORDER = ("both, not alike", "both, alike", "only the left", "only the right")
"""Who changed a file, in the order in which files are listed."""


class CompareScreen(View):
    """Shows what `left` and `right`, two sessions of one repository, changed."""

    heading = "Side by side"
    here = "sessions"
    opened = True
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "back", "back"),
        Binding("n", "file(1)", "next file"),
        Binding("N,p", "file(-1)", "previous file", show=False),
        Binding("equals_sign", "difference", "as a diff", tooltip="how the right one differs from the left one"),
        Binding("tab", "app.focus_next", "left, right", show=False, tooltip="to the left, the right, the files"),
    ]

    def __init__(self, context: Context, left: SessionRow, right: SessionRow) -> None:
        super().__init__(context)
        self._sides = (left, right)
        self._pairs: list[FilePair] | None = None

    def body(self) -> ComposeResult:
        """Yields what each session is, the files of both, and what each changed in the chosen one."""
        left, right = (plain(session.name) for session in self._sides)
        with Container(id="heads"):
            yield Lines(id="head-left", classes="half")
            yield Lines(id="head-right", classes="half")
        files: Listing[FilePair] = Listing(
            [
                Column("FILE", _path, 20, 0, 60, tail=True, grows=True),
                Column(left, lambda pair: _side(pair.left), 14, 0, 34),
                Column(right, lambda pair: _side(pair.right), 14, 0, 34),
                Column("CHANGED BY", lambda pair: cell(who(pair), _TONES[who(pair)]), 15, 1),
            ],
            lambda pair: pair.path,
            empty="reading…",
            id="list",
        )
        yield files
        with Container(id="pair"):
            yield DiffView(id="left")
            yield DiffView(id="right")

    @property
    def files(self) -> Listing[FilePair]:
        """The files that either changed."""
        return self.query_one("#list", Listing)

    def on_mount(self) -> None:
        """Focuses the files."""
        self.files.focus()

    def reread(self) -> None:
        """Reads the files of both."""
        left, right = self._sides
        sessions = self.context.sessions
        self.context.loader.read(
            "files of two sessions",
            self,
            lambda: ComparisonRead(pairs_of(sessions, left, right)),
            failed=self.cannot_read,
        )

    def happened(self, events: list[dict[str, Any]]) -> None:
        """Reads again after a recording in either."""
        shown = {(session.repo, session.name) for session in self._sides}
        if any(event["event"] == "recorded" and (event["repo"], event["session"]) in shown for event in events):
            self.context.follower.soon(self.reread, self)

    def take(self, news: frozenset[str]) -> None:
        """Shows what changed."""
        super().take(news)
        if {TIME, SERVE} & news:
            self._say()

    def on_comparison_read(self, message: ComparisonRead) -> None:
        """Shows the files of both."""
        self._pairs = message.pairs
        self.files.empty = "Neither changed a file."
        self.files.show(message.pairs)
        self.files.styles.height = min(max(len(message.pairs), 1) + 2, max(5, self.size.height // 3))
        self._say()
        self._read_pair()

    def on_pair_read(self, message: PairRead) -> None:
        """Shows what each changed in the file, unless another was chosen meanwhile."""
        row = self.files.row
        if row is None or row.path != message.path:
            return
        for place, session, lines in zip(("left", "right"), self._sides, (message.left, message.right), strict=True):
            said = f"{session.name} did not change it" if lines is None else "binary, or only its mode changed"
            self.query_one(f"#{place}", DiffView).show(lines or [], said)

    def cannot_read(self, message: ReadFailed) -> None:
        """Shows the error; the commits may be gone with their session."""
        if self.has_widgets:
            self.files.empty = f"{message.error.message} {message.error.hint}".strip()
            self.files.show([])

    def on_listing_moved(self, event: Listing.Moved) -> None:
        """Reads the diffs of the file under the cursor."""
        self._read_pair()

    def on_listing_chosen(self, event: Listing.Chosen) -> None:
        """Focuses what the left one changed, or the right one where the left one did not change the file."""
        self.query_one("#right" if event.row.left is None else "#left", DiffView).focus()

    def focus_body(self) -> None:
        """Moves the focus back to the files."""
        self.files.focus()

    def action_file(self, by: int) -> None:
        """Goes to the next file, or to the one before."""
        self.files.action_move(by)

    def action_difference(self) -> None:
        """Opens how the right one differs from the left one, as one diff."""
        left, right = self._sides
        self.post_message(OpenDiff(right, against=left))

    def _read_pair(self) -> None:
        row, sessions, sides = self.files.row, self.context.sessions, self._sides
        if row is None:
            return

        def work() -> PairRead:
            left, right = (
                None if change is None else _lines(sessions, session, change)
                for session, change in zip(sides, (row.left, row.right), strict=True)
            )
            return PairRead(row.path, left, right)

        self.context.loader.read("diffs of two sessions", self, work, failed=self.cannot_read)

    def _say(self) -> None:
        left, right = self._sides
        differ = left.base != right.base
        for place, session, changes in (
            ("left", left, [pair.left for pair in self._pairs or () if pair.left]),
            ("right", right, [pair.right for pair in self._pairs or () if pair.right]),
        ):
            lines = _head(session, changes if self._pairs is not None else None, self.model.clock(), differ)
            self.query_one(f"#head-{place}", Lines).show(*lines)


def pairs_of(sessions: Sessions, left: SessionRow, right: SessionRow) -> list[FilePair]:
    """Reads the files that either session changed, those that both changed differently first. Raises GitmirrorError."""
    changes = [
        {file.path: file for file in sessions.files(sessions.compare_listed(each.repo, each.name, None, None))}
        for each in (left, right)
    ]
    between = sessions.files(sessions.compare_listed(right.repo, right.name, None, left.name))
    unlike = {path for file in between for path in (file.path, file.before)}
    pairs = [
        FilePair(path, changes[0].get(path), changes[1].get(path), path not in unlike)
        for path in sorted(changes[0].keys() | changes[1].keys())
    ]
    return sorted(pairs, key=lambda pair: ORDER.index(who(pair)))


def who(pair: FilePair) -> str:
    """Says which of the two sessions changed the file."""
    if pair.left is None or pair.right is None:
        return ORDER[3] if pair.left is None else ORDER[2]
    return ORDER[1] if pair.alike else ORDER[0]


_TONES = dict(zip(ORDER, ("warn", "good", "dim", "dim"), strict=True))


def _lines(sessions: Sessions, session: SessionRow, change: FileChange) -> list[DiffLine]:
    comparison = sessions.compare_listed(session.repo, session.name, None, None)
    text, cut = sessions.file_diff(comparison, change, LIMIT)
    lines = diff_lines(text, change.path)
    if cut:
        said = f"cut here, after {format_size(LIMIT)}: enter on the session shows how to export all of it"
        lines.append(DiffLine("!", None, None, ((said, "accent"),)))
    return lines


def _path(pair: FilePair) -> Cell:
    directory, slash, name = pair.path.rpartition("/")
    return (directory + slash, "dim"), (name, "")


def _side(change: FileChange | None) -> Cell:
    if change is None:
        return cell("unchanged", "dim")
    if change.binary:
        return cell("binary")
    pieces: list[Piece] = [(file_number("+", change.insertions, change), "good"), (" ", "")]
    pieces.append((file_number("-", change.deletions, change), "minus"))
    return tuple(pieces) if change.insertions or change.deletions else cell("renamed, or its mode")


def _head(session: SessionRow, changes: Sequence[FileChange] | None, now: float, bases_differ: bool) -> list[Line]:
    """Says what a session is: its name and size, its last message and who wrote it, and where it started."""
    figures: list[Piece] = [(f"{count(session.turns, 'turn')}  ", "accent")]
    if changes is not None:
        figures += [
            (f"{count(len(changes), 'file')}  ", ""),
            (f"{signed('+', sum(change.insertions for change in changes))} ", "good"),
            (f"{signed('-', sum(change.deletions for change in changes))} ", "minus"),
        ]
    by = session.guest or session.client
    start = f"started from {session.base[:10]}" if session.base else "unrelated to the upstream"
    mark: Piece = (" ▲ ", "warn") if bases_differ else ("   ", "")
    other = ", not where the other did" if bases_differ else ""
    return [
        (((f" {session.name}", "strong"), (f" in {session.repo}", "dim")), tuple(figures)),
        (cell(f"   {session.subject}"), cell(f"{span(now - session.last_at)} ago by {by} ", "dim")),
        ((mark, (f"{start}{other}", "warn" if bases_differ else "dim")), ()),
    ]
