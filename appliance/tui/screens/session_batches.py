"""What can be done to several marked sessions at once, after one question that names how many there are."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from appliance.core.errors import GitmirrorError
from appliance.core.node.callers_files import CallersFiles
from appliance.tui.data.batch import Order
from appliance.tui.data.rows import SessionRow
from appliance.tui.screens.dialogs import Form
from appliance.tui.screens.session_actions import SessionActions
from appliance.tui.screens.session_marking import SessionMarking
from appliance.tui.text import count, size, span


class SessionBatches(SessionActions, SessionMarking):
    """The actions on the marked sessions; without marks, on the session under the cursor."""

    def action_keep(self) -> None:
        """Exempts the marked sessions from retention; when all are kept, stops exempting them."""
        rows, sessions = self.marked, self.context.sessions
        if not rows:
            super().action_keep()
            return
        if not self.may_write():
            return
        kept = not all(row.kept for row in rows)
        chosen = [row for row in rows if row.kept != kept]
        orders = _orders(chosen, lambda row: partial(sessions.keep, row.repo, row.name, kept))
        word = "kept" if kept else "under retention again"
        text = "Retention does not end them then." if kept else "Retention ends them when their time comes."
        question = f"{'Keep' if kept else 'Stop keeping'} {count(len(chosen), 'session')}?"
        self.ask_about_all(question, f"{_total(chosen)}. {text}", "Do it", orders, word, _said)

    def action_drop(self) -> None:
        """Ends the marked sessions, without those that are kept."""
        rows, sessions = self.marked, self.context.sessions
        if not rows:
            super().action_drop()
            return
        if not self.may_write():
            return
        chosen = [row for row in rows if not row.kept]
        kept = len(rows) - len(chosen)
        if not chosen:
            self.context.say("all marked sessions are kept: K ends that first", severity="warning")
            return
        newest = max(chosen, key=lambda row: row.last_at)
        refs = "Its ref and turns" if len(chosen) == 1 else "Their refs and turns"
        text = (
            f"{_total(chosen)}. The newest is {newest.name}, last written {span(self.model.clock() - newest.last_at)} "
            f"ago. {refs} are removed; the audit log keeps its rows. One that an agent records into meanwhile stays."
        )
        if kept:
            text += f" {kept:,} that {'is kept stays' if kept == 1 else 'are kept stay'}, too."
        orders = _orders(chosen, lambda row: partial(sessions.drop_listed, row.repo, row.name, row.tip))
        answer = "End them" if len(chosen) > 1 else "End it"
        self.ask_about_all(f"End {count(len(chosen), 'session')}?", text, answer, orders, "ended", _said)

    def action_checkout(self) -> None:
        """Asks for a directory and checks the marked sessions out below it."""
        rows, sessions = self.marked, self.context.sessions
        if not rows:
            super().action_checkout()
            return

        def order(row: SessionRow, place: Path) -> None:
            sessions.checkout(row.repo, row.name, place, None)

        text = f"{_total(rows)}. Each goes to a new directory of its name, whose origin is the upstream."
        self._place("Check out", "checked out", text, rows, "", order)

    def action_export(self) -> None:
        """Asks for a directory and writes the diffs of the marked sessions there."""
        rows, sessions = self.marked, self.context.sessions
        if not rows:
            super().action_export()
            return

        def order(row: SessionRow, place: Path) -> None:
            sessions.export(sessions.compare_listed(row.repo, row.name, None, None), place)

        text = f"{_total(rows)}. Each diff goes to a new file SESSION.patch, which `git apply` takes."
        self._place("Export", "exported", text, rows, ".patch", order)

    def _place(
        self,
        verb: str,
        word: str,
        text: str,
        rows: Sequence[SessionRow],
        ending: str,
        order: Callable[[SessionRow, Path], None],
    ) -> None:
        """Asks for a directory, and carries out an order for each session with its own place there."""
        mixed = len({row.repo for row in rows}) > 1

        def entered(answer: dict[str, str] | None) -> None:
            if not answer:
                return
            directory = Path(os.path.abspath(os.path.expanduser(answer["place"])))

            def work(row: SessionRow) -> None:
                _make(self.context.node.files, directory)
                order(row, directory / f"{_file_name(row, mixed)}{ending}")

            self.act_on_all(_orders(rows, lambda row: partial(work, row)), word, _said)

        field = ("place", "directory", "./sessions", "a directory; it is made if it does not exist")
        self.context.ask(Form(f"{verb} {count(len(rows), 'session')}", text, [field]), entered)


def _orders(rows: Sequence[SessionRow], work: Callable[[SessionRow], Callable[[], object]]) -> list[Order]:
    return [Order((row.repo, row.name), row.name, work(row)) for row in rows]


def _total(rows: Sequence[SessionRow]) -> str:
    """Says what the sessions are in total."""
    repos = {row.repo for row in rows}
    where = next(iter(repos)) if len(repos) == 1 else f"{len(repos)} repositories"
    return f"{count(sum(row.turns for row in rows), 'turn')} in {where}, {size(sum(row.bytes for row in rows))}"


def _said(word: str, number: int) -> str:
    return f"{count(number, 'session')} {'is' if number == 1 else 'are'} {word}"


def _file_name(row: SessionRow, mixed: bool) -> str:
    """The session's name as one part of a path, with its repository where sessions of several are together."""
    return f"{row.repo}/{row.name}".replace("/", "-") if mixed else row.name.replace("/", "-")


def _make(files: CallersFiles, directory: Path) -> None:
    try:
        files.make_directory(directory)
    except OSError as error:
        raise GitmirrorError(f"{directory} cannot be made: {error.strerror}", hint="choose another place") from error
