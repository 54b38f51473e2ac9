"""What can be done to a session, from the list of sessions and from a diff."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from textual.binding import Binding, BindingType

from appliance.tui.context import OpenNotes
from appliance.tui.data.rows import SessionRow
from appliance.tui.screens.dialogs import CANCEL, Ask, Form
from appliance.tui.screens.view import View
from appliance.tui.text import count, size

SESSION_KEYS: list[BindingType] = [
    Binding("c", "checkout", "checkout", tooltip="check its files out into a directory"),
    Binding("e", "export", "export", tooltip="write its diff to a file, as a patch"),
    Binding("v", "notes", "notes", tooltip="its notes and attachments"),
    Binding("y", "copy_checkout", "copy command", tooltip="copy the command that checks it out"),
    Binding("K", "keep", "keep", tooltip="exempt it from retention, or stop exempting it"),
    Binding("X", "drop", "end", tooltip="end it, after asking"),
]


class SessionActions(View):
    """The actions on `session`, or on its turn number `turn`."""

    @property
    def session(self) -> SessionRow | None:
        """The session that keys act on."""
        raise NotImplementedError

    @property
    def turn(self) -> int | None:
        """The turn that keys act on, None for the whole session."""
        return None

    @property
    def against(self) -> SessionRow | None:
        """The session whose last turn the diff is compared with, None for what the diff of one session compares."""
        return None

    def action_notes(self) -> None:
        """Opens its notes and attachments."""
        if session := self.session:
            self.post_message(OpenNotes(session, self.turn))

    def action_checkout(self) -> None:
        """Asks for a directory and checks the files out there."""
        if not (session := self.session):
            return
        turn, sessions = self.turn, self.context.sessions

        def checkout(entered: dict[str, str] | None) -> None:
            if entered:
                directory = Path(os.path.abspath(os.path.expanduser(entered["place"])))

                def work() -> str:
                    chosen = sessions.checkout(session.repo, session.name, directory, turn)
                    return f"{directory} is at {chosen.commit[:12]}: {chosen.subject}"

                self.context.act(f"checkout of {session.name}", work)

        form = Form(
            f"Check out {session.name}{_of(turn)}",
            "Its files go to a new directory whose origin is the upstream.",
            [("place", "directory", f"./{session.name}", "a directory that does not exist yet")],
        )
        self.context.ask(form, checkout)

    def action_export(self) -> None:
        """Asks for a file and writes the diff there."""
        if not (session := self.session):
            return
        turn, sessions = self.turn, self.context.sessions
        against = self.against.name if self.against else None

        def export(entered: dict[str, str] | None) -> None:
            if entered:
                path = Path(os.path.abspath(os.path.expanduser(entered["place"])))

                def work() -> str:
                    comparison = sessions.compare_listed(session.repo, session.name, turn, against)
                    return f"{path}: {size(sessions.export(comparison, path))}; `git apply` takes it"

                self.context.act(f"export of {session.name}", work)

        suffix = f"-{turn}" if turn else ""
        form = Form(
            f"Export {session.name}{_of(turn)}{f' against {against}' if against else ''}",
            "Its diff goes to a new file as one patch.",
            [("place", "file", f"./{session.name}{suffix}.patch", "a file that does not exist yet")],
        )
        self.context.ask(form, export)

    def action_copy_checkout(self) -> None:
        """Copies the command that checks it out."""
        if session := self.session:
            self.context.copy(self._checkout_line(session, self.turn))

    def _checkout_line(self, session: SessionRow, turn: int | None) -> str:
        """Returns the command that checks the session out."""
        words = ["session", "checkout", session.repo, session.name, f"./{session.name}"]
        return f"{self.context.command} {shlex.join(words)}" + (f" --turn {turn}" if turn else "")

    def action_keep(self) -> None:
        """Exempts the session from retention, or stops exempting it."""
        if not (session := self.session) or not self.may_write():
            return
        sessions, kept = self.context.sessions, not session.kept

        def work() -> str:
            sessions.keep(session.repo, session.name, kept)
            return f"{session.name} is {'kept' if kept else 'under retention again'}"

        self.context.act(f"keep {session.name}", work)

    def action_drop(self) -> None:
        """Ends the session after asking for confirmation."""
        if not (session := self.session) or not self.may_write():
            return
        sessions = self.context.sessions

        def drop(answer: str | None) -> None:
            if answer and answer != CANCEL:

                def work() -> str:
                    sessions.drop(session.repo, session.name)
                    return f"{session.name} is ended"

                self.context.act(f"drop {session.name}", work)

        self.context.ask(
            Ask(
                f"End the session {session.name}?",
                f"Its ref and its {count(session.turns, 'turn')} are removed from {session.repo}. "
                "The audit log keeps its rows.",
                [("drop", "End it")],
            ),
            drop,
        )


def _of(turn: int | None) -> str:
    return f", turn {turn}" if turn else ""
