"""Sessions whose end has begun: their refs are being deleted, and their rows follow."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from appliance.core.models import Turn
from appliance.core.store.database import Database, rows
from appliance.core.store.session_summary import turn_of


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

    def begin(
        self, repo: str, last: Mapping[str, int], upto: Mapping[str, int], reason: str, *, spare_kept: bool
    ) -> set[str]:
        """Notes that the refs of these sessions are about to be deleted; returns the sessions.

        With `spare_kept`, those that somebody has meanwhile exempted from retention are not among them.
        """
        with self._database.writing() as connection:
            begun = set(last)
            if spare_kept:
                found = rows(connection, "SELECT session FROM sessions WHERE repo = ? AND kept", repo)
                begun -= {row["session"] for row in found}
            connection.conn.executemany(
                "INSERT OR REPLACE INTO ends_begun VALUES (?, ?, ?, ?, ?)",
                [(repo, session, last[session], upto[session], reason) for session in sorted(begun)],
            )
        return begun

    def take_back(self, repo: str, sessions: Collection[str]) -> None:
        """Notes that none of their refs was deleted, so that they go on."""
        with self._database.writing() as connection:
            connection.conn.executemany(
                "DELETE FROM ends_begun WHERE repo = ? AND session = ?", [(repo, session) for session in sessions]
            )

    def later(self, repo: str, begun: BegunEnd) -> list[Turn]:
        """The turns of a session that its end leaves, oldest first."""
        with self._database.reading() as connection:
            query = """SELECT * FROM turns WHERE repo = ? AND session = ?
                AND CASE WHEN away THEN seq IS NULL OR seq > ? ELSE id > ? END ORDER BY turn"""
            return [
                turn_of(row) for row in rows(connection, query, repo, begun.session, begun.upto, begun.last_attempt)
            ]

    def of(self, repo: str) -> list[BegunEnd]:
        """The ends of a repository that have begun."""
        with self._database.reading() as connection:
            query = "SELECT session, last_attempt, upto, reason FROM ends_begun WHERE repo = ? ORDER BY session"
            return [BegunEnd(**row) for row in rows(connection, query, repo)]
