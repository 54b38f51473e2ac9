"""Opens one row of activity whole: a recorded push as the diff of its turn, everything else as a list of facts."""

from __future__ import annotations

from appliance.core.errors import GitmirrorError
from appliance.core.models import Turn
from appliance.tui.context import OpenDiff
from appliance.tui.data.activity import PUSH, ActivityEntry
from appliance.tui.data.facts import facts_of, title_of, what_to_do
from appliance.tui.data.messages import ReadFailed, SessionRead, WholeRead
from appliance.tui.data.rows import SessionRow
from appliance.tui.screens.view import View


class Opening(View):
    """What enter does on a row of activity."""

    def open_entry(self, entry: ActivityEntry) -> None:
        """Opens the row; what is not on screen yet is read first."""
        if entry.kind == PUSH and entry.refused:
            self._read_refusal(entry)
        elif entry.kind == PUSH and not entry.open and entry.row.get("session"):
            self._read_turn(entry)
        else:
            self._show(entry)

    def on_session_read(self, message: SessionRead) -> None:
        """Opens the diff of the turn that was looked for."""
        message.stop()
        message.then(message.session, message.turns)

    def on_whole_read(self, message: WholeRead) -> None:
        """Shows what was read about the row."""
        self.show_whole(message.title, message.facts)

    def _show(self, entry: ActivityEntry, *more: tuple[str, str]) -> None:
        self.show_whole(title_of(entry), [*facts_of(entry, self.model.clock()), *more])

    def _read_turn(self, entry: ActivityEntry) -> None:
        repo, name, queries = entry.repo, entry.row["session"], self.context.queries

        def opened(session: SessionRow | None, turns: list[Turn]) -> None:
            if session is None:
                self._show(entry, ("diff", "none: its session was ended, so the commits are gone"))
                return
            number = next((n for n, turn in enumerate(turns, 1) if turn.commit == entry.row["new"]), None)
            self.post_message(OpenDiff(session, number))

        def work() -> SessionRead:
            row = queries.session(repo, name)
            return SessionRead(SessionRow.of(row) if row else None, queries.turns(repo, name) if row else [], opened)

        self.context.loader.read("push", self, work, failed=self._failed)

    def _read_refusal(self, entry: ActivityEntry) -> None:
        queries, now = self.context.queries, self.model.clock()
        view = self.model.repos.get(entry.repo)
        only_known = self.context.node.config.recording.writers != "anyone"

        def work() -> WholeRead:
            facts = facts_of(entry, now)
            if view is not None:
                facts.append(("what to do", what_to_do(entry, view.repo, queries.guests(), only_known=only_known)))
            return WholeRead(title_of(entry), facts)

        self.context.loader.read("refusal", self, work, failed=self._failed)

    def _failed(self, message: ReadFailed) -> None:
        error: GitmirrorError = message.error
        self.context.say(f"{error.message} {error.hint or ''}".strip(), severity="error")
