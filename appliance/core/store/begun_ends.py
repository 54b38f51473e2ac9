"""Sessions whose end has begun: their refs are being deleted, and their rows follow."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from appliance.core.store.database import Database, rows


class BegunEnd(NamedTuple):
    """An end that was begun: of the turns up to the audit id `last_attempt`, and those of other nodes up to `upto`."""

    session: str
    last_attempt: int
    upto: int
    reason: str


class BegunEndStore:
    """Notes in `database` which ends have begun, so that a kill in the middle of one does not look like a loss.

    `SessionStore.end` deletes the note with the session.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def begin(self, repo: str, last: Mapping[str, int], upto: Mapping[str, int], reason: str) -> None:
        """Notes that the refs of these sessions are about to be deleted."""
        with self._database.writing() as connection:
            connection.conn.executemany(
                "INSERT OR REPLACE INTO ends_begun VALUES (?, ?, ?, ?, ?)",
                [(repo, session, attempt, upto[session], reason) for session, attempt in last.items()],
            )

    def take_back(self, repo: str, sessions: Collection[str]) -> None:
        """Notes that none of their refs was deleted, so that they go on."""
        with self._database.writing() as connection:
            connection.conn.executemany(
                "DELETE FROM ends_begun WHERE repo = ? AND session = ?", [(repo, session) for session in sessions]
            )

    def of(self, repo: str) -> list[BegunEnd]:
        """The ends of a repository that have begun."""
        with self._database.reading() as connection:
            query = "SELECT session, last_attempt, upto, reason FROM ends_begun WHERE repo = ? ORDER BY session"
            return [BegunEnd(**row) for row in rows(connection, query, repo)]
