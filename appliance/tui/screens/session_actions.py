"""What can be done to a session, from the list of sessions and from a diff."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from textual.binding import Binding, BindingType

from appliance.tui.context import Context, OpenNotes
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


class SessionOrders:
    """Orders about one session, from a key or from a typed command; what cannot be undone asks first."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def check_out(self, repo: str, name: str, place: str, turn: int | None) -> None:
        """Checks its files out into the directory `place`, which may begin with `~`."""
        directory, sessions = Path(os.path.abspath(os.path.expanduser(place))), self._context.sessions

        def work() -> str:
            chosen = sessions.checkout(repo, name, directory, turn)
            return f"{directory} is at {chosen.commit[:12]}: {chosen.subject}"

        self._context.act(f"checkout of {name}", work)

    def keep(self, repo: str, name: str, *, kept: bool) -> None:
        """Exempts it from retention, or stops exempting it."""
        sessions = self._context.sessions

        def work() -> str:
            sessions.keep(repo, name, kept)
            return f"{name} is {'kept' if kept else 'under retention again'}"

        self._context.act(f"keep {name}", work)

    def drop(self, session: SessionRow) -> None:
        """Ends it after asking for confirmation."""
        sessions = self._context.sessions

        def drop(answer: str | None) -> None:
            if answer and answer != CANCEL:

                def work() -> str:
                    sessions.drop(session.repo, session.name)
                    return f"{session.name} is ended"

                self._context.act(f"drop {session.name}", work)

        self._context.ask(
            Ask(
                f"End the session {session.name}?",
                f"Its ref and its {count(session.turns, 'turn')} are removed from {session.repo}. "
                "The audit log keeps its rows.",
                [("drop", "End it")],
            ),
            drop,
        )


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
        turn, orders = self.turn, SessionOrders(self.context)

        def checkout(entered: dict[str, str] | None) -> None:
            if entered:
                orders.check_out(session.repo, session.name, entered["place"], turn)

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
        if (session := self.session) and self.may_write():
            SessionOrders(self.context).keep(session.repo, session.name, kept=not session.kept)

    def action_drop(self) -> None:
        """Ends the session after asking for confirmation."""
        if (session := self.session) and self.may_write():
            SessionOrders(self.context).drop(session)


def _of(turn: int | None) -> str:
    return f", turn {turn}" if turn else ""
