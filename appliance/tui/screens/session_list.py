"""The sessions that a view shows: the newest are read first, then all, and later only the newest again."""

from __future__ import annotations

from textual.screen import Screen

from appliance.tui.context import Context
from appliance.tui.data.messages import SessionsRead
from appliance.tui.data.rows import SessionRow

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
        self._found: dict[tuple[str, str], SessionRow] = {}
        self.rows: list[SessionRow] = []
        self.total = 0
        self._marks: list[tuple[str, str]] = []

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
        found = {(row.repo, row.name): row for row in message.sessions}
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
        return [self._found[key] for key in self._marks if key in self._found]

    def is_marked(self, session: SessionRow) -> bool:
        """Whether the session is marked."""
        return (session.repo, session.name) in self._marks

    def mark(self, session: SessionRow) -> None:
        """Marks the session, or takes its mark off."""
        key = (session.repo, session.name)
        self._marks = [each for each in self._marks if each != key] + ([] if key in self._marks else [key])

    def unmark_all(self) -> None:
        """Takes all marks off."""
        self._marks = []

    def matching(self, words: str) -> list[SessionRow]:
        """Returns the sessions that contain all the words in their name, repository, client, guest, node or subject.

        The word `guest:NAME` stands for those whose last turn is of exactly that known guest.
        """
        guests = [word.removeprefix(OF_GUEST) for word in words.split() if word.startswith(OF_GUEST)]
        wanted = [word.lower() for word in words.split() if not word.startswith(OF_GUEST)]
        found = [row for row in self.rows if all(row.guest == guest for guest in guests)] if guests else self.rows
        return [row for row in found if all(word in _text(row) for word in wanted)] if wanted else found


def _text(row: SessionRow) -> str:
    return f"{row.name} {row.repo} {row.client} {row.guest or ''} {row.node or ''} {row.subject}".lower()
