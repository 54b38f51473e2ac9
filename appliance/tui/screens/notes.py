"""What an agent said beside its commits: the notes of a session's turns, and the files that are attached to them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container

from appliance.core.units import format_size
from appliance.tui.context import Context
from appliance.tui.data.messages import AttachmentRead, NotesRead, ReadFailed
from appliance.tui.data.rows import DiffLine, NoteRow, SessionRow
from appliance.tui.screens.dialogs import Form
from appliance.tui.screens.view import View
from appliance.tui.text import Cell, cell, count, plain, size, wrapped
from appliance.tui.widgets.diffview import DiffView
from appliance.tui.widgets.lines import Lines
from appliance.tui.widgets.listing import Column, Listing

LIMIT = 256 * 2**10
"""The most bytes of an attachment that are shown."""
LONGEST_LINE = 2000
"""Characters of a line that are shown, because a minified file is a single line."""
HINT = "Agents add them: gitmirror_record --note KEY=VALUE --attach FILE"
"""What is said where the text stands otherwise; it fits beside the list at 120 columns."""


class NotesScreen(View):
    """Shows the notes and attachments of `session`, with the cursor on those of `turn` first."""

    heading = "Notes"
    here = "sessions"
    opened = True
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "back", "back"),
        Binding("n", "entry(1)", "next"),
        Binding("N,p", "entry(-1)", "the one before", show=False),
        Binding("e", "save", "save", tooltip="save the attachment to a new file"),
        Binding("tab", "app.focus_next", "text", show=False, tooltip="to its text, and back"),
    ]

    def __init__(self, context: Context, session: SessionRow, turn: int | None = None) -> None:
        super().__init__(context)
        self._session = session
        self._turn = turn

    def body(self) -> ComposeResult:
        """Yields the title, the list, and the text of the chosen one."""
        yield Lines(id="title")
        with Container(id="halves"):
            entries: Listing[NoteRow] = Listing(
                [
                    Column("TURN", lambda row: cell(f"{row.turn}", "strong"), 4, 0, right=True),
                    Column("NAME", lambda row: cell(row.name, "" if row.is_file else "accent"), 12, 0, 30, grows=True),
                    Column("SIZE", _size, 10, 0, right=True),
                ],
                lambda row: (row.turn, row.is_file, row.name),
                empty="reading…",
                id="list",
            )
            yield entries
            yield DiffView(id="text")

    @property
    def entries(self) -> Listing[NoteRow]:
        """The notes and attachments."""
        return self.query_one("#list", Listing)

    def on_mount(self) -> None:
        """Focuses the list."""
        self.entries.focus()

    def reread(self) -> None:
        """Reads the notes and what is attached."""
        repo, name, queries = self._session.repo, self._session.name, self.context.queries

        def work() -> NotesRead:
            details = queries.details(repo, name)
            found: list[NoteRow] = []
            for number, turn in reversed(list(enumerate(queries.turns(repo, name), 1))):
                said = details.get(turn.id, {"notes": {}, "attachments": []})
                found += [NoteRow(number, key, value, None) for key, value in said["notes"].items()]
                found += [NoteRow(number, file["name"], "", file["size"]) for file in said["attachments"]]
            return NotesRead(found)

        self.context.loader.read("notes", self, work)

    def on_notes_read(self, message: NotesRead) -> None:
        """Shows the list, and from the first time on the turn that was chosen."""
        entries = self.entries
        entries.empty = "No turn has a note or an attachment."
        entries.show(message.rows)
        if self._turn is not None and (row := next((row for row in message.rows if row.turn == self._turn), None)):
            entries.select(entries.key(row))
            self._turn = None
        files = sum(row.is_file for row in message.rows)
        notes = count(len(message.rows) - files, "note")
        left: Cell = ((f" {self._session.name}", "strong"), (f" in {self._session.repo}", "dim"))
        self.query_one("#title", Lines).show((left, cell(f"{notes}, {count(files, 'attachment')} ", "dim")))
        self._read()

    def on_attachment_read(self, message: AttachmentRead) -> None:
        """Shows the text of the attachment, unless another was chosen meanwhile."""
        if self.entries.row == message.row:
            self._show(message.text, message.said)

    def cannot_read(self, message: ReadFailed) -> None:
        """Shows why an attachment cannot be read."""
        if self.has_widgets:
            self._show("", f"{message.error.message}; {message.error.hint}".strip("; "))

    def on_listing_moved(self, event: Listing.Moved) -> None:
        """Shows the one under the cursor."""
        self._read()

    def on_listing_chosen(self, event: Listing.Chosen) -> None:
        """Focuses the text."""
        self.query_one("#text", DiffView).focus()

    def usable(self, binding: Binding) -> bool:
        """Whether the key does something now."""
        row = self.entries.row
        return super().usable(binding) and (binding.action != "save" or (row is not None and row.is_file))

    def focus_body(self) -> None:
        """Moves the focus back to the list."""
        self.entries.focus()

    def action_entry(self, by: int) -> None:
        """Goes to the next one, or to the one before."""
        self.entries.action_move(by)

    def action_save(self) -> None:
        """Asks for a file and saves the attachment there."""
        row, session, sessions = self.entries.row, self._session, self.context.sessions
        if row is None or not row.is_file:
            self.context.say("a note is shown whole; only an attachment is saved to a file", severity="warning")
            return

        def save(entered: dict[str, str] | None) -> None:
            if entered:
                path = Path(os.path.abspath(os.path.expanduser(entered["place"])))

                def work() -> str:
                    written = sessions.save_attachment(session.repo, session.name, row.name, row.turn, path)
                    return f"{path}: {size(written)}"

                self.context.act(f"save {row.name}", work)

        form = Form(
            f"Save {row.name} of turn {row.turn}",
            "An agent chose what is in it. It goes to a new file; nothing is overwritten.",
            [("place", "file", f"./{row.name.rpartition('/')[2]}", "a file that does not exist yet")],
        )
        self.context.ask(form, save)

    def _read(self) -> None:
        row, session, sessions = self.entries.row, self._session, self.context.sessions
        self.offer_keys()
        if row is None:
            self._show("", HINT)
        elif not row.is_file:
            self._show("\n".join(wrapped(row.value, max(20, self.query_one("#text").size.width - 10), 1000)))
        else:

            def work() -> AttachmentRead:
                with sessions.attachment(session.repo, session.name, row.name, row.turn) as file:
                    data = file.read(LIMIT + 1)
                return AttachmentRead(row, *attachment_text(data))

            self.context.loader.read("attachment", self, work, failed=self.cannot_read)

    def _show(self, text: str, said: str = "") -> None:
        lines = [
            DiffLine(" ", None, number, ((plain(line[:LONGEST_LINE].expandtabs(4)), ""),))
            for number, line in enumerate(text.splitlines(), 1)
        ]
        if lines and said:
            lines.append(DiffLine("!", None, None, ((said, "accent"),)))
        self.query_one("#text", DiffView).show(lines, said)


def attachment_text(data: bytes) -> tuple[str, str]:
    """Returns what is shown of an attachment, and a remark: that it was cut, or why it is not shown."""
    cut = len(data) > LIMIT
    if b"\0" in data:
        return "", "It is not text: e saves it to a file."
    try:
        # The cut may go through a character.
        text = data[:LIMIT].decode("utf-8", "ignore" if cut else "strict")
    except UnicodeDecodeError:
        return "", "It is not text: e saves it to a file."
    if not text:
        return "", "It is empty."
    return text, f"cut here, after {format_size(LIMIT)}: e saves all of it" if cut else ""


def _size(row: NoteRow) -> Cell:
    return cell("note", "dim") if row.size is None else cell(size(row.size))
