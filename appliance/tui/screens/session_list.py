"""The sessions that a view shows: the newest are read first, then all, and later only the newest again."""

from __future__ import annotations

from collections.abc import Hashable

from textual.screen import Screen

from appliance.tui.context import Context
from appliance.tui.data.messages import SessionsRead
from appliance.tui.data.rows import SessionRow
from appliance.tui.data.session_query import Found, SessionQuery
from appliance.tui.screens.marking import Marks

FIRST = 200
"""How many rows a read of the newest sessions returns: more than a screenful, in a few milliseconds."""
MOST = 20_000
"""The most sessions that are read in total."""
OF_GUEST = "guest:"
"""Begins the word of a filter that stands for the sessions of one known guest."""


class SessionList:
    """The sessions of one repository, or of all repositories for None."""

    def __init__(self, repo: str | None) -> None:
        self._repo = repo
        self._found: dict[Hashable, SessionRow] = {}
        self.rows: list[SessionRow] = []
        self.total = 0
        self.marks = Marks(lambda row: (row.repo, row.name))

    def read(self, context: Context, view: Screen[None], *, whole: bool = False) -> None:
        """Reads the newest sessions, or all of them; the view receives a SessionsRead."""
        repo, limit, queries = self._repo, MOST if whole else FIRST, context.queries

        def work() -> SessionsRead:
            rows, total = queries.sessions(repo, limit)
            return SessionsRead(repo, [SessionRow.of(row) for row in rows], total)

        context.loader.read(f"sessions {'all' if whole else 'newest'} {repo or ''}", view, work)

    def take(self, message: SessionsRead, context: Context, view: Screen[None]) -> bool:
        """Merges what was read and returns whether anything is new.

        If the total shows that some are missing or gone, it reads all of them.
        """
        found: dict[Hashable, SessionRow] = {(row.repo, row.name): row for row in message.sessions}
        same = message.total == self.total and all(self._found.get(key) == row for key, row in found.items())
        # There are more rows than the total if a session ended between the reads of the rows and of the total.
        if same and 0 < len(self._found) <= message.total:
            return False
        self.total = message.total
        self._found = found if len(found) >= min(message.total, MOST) else self._found | found
        self.rows = sorted(self._found.values(), key=lambda row: (-row.last_at, row.name))
        if len(self._found) != min(message.total, MOST):
            self.read(context, view, whole=True)
        return True

    @property
    def marked(self) -> list[SessionRow]:
        """The marked sessions in the order they were marked, without those that ended since."""
        return [self._found[key] for key in self.marks.keys if key in self._found]

    def matching(self, query: SessionQuery, found: Found) -> list[SessionRow]:
        """Returns the sessions that match, as far as `found` tells."""
        return [row for row in self.rows if query.matches(row, found)] if query != SessionQuery() else self.rows
