"""Turns that other nodes took, as far as bringing their objects needs them."""

from __future__ import annotations

from dataclasses import dataclass

from appliance.core.store.database import Database, rows

_SELECT = """SELECT t.id, t.repo, t.session, t.commit_id AS "commit", t.node, f.document
    FROM turns t JOIN fleet_turns f ON f.uid = t.uid WHERE t.away = 1"""


@dataclass(frozen=True)
class AwayTurn:
    """A turn of another node; `document` is its row as it stands in the fleet's stream."""

    id: int
    repo: str
    session: str
    commit: str
    node: str | None
    document: str


class AwayTurnStore:
    """Reads `database`. Every method raises StoreError."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def newest(self, repo: str, session: str) -> AwayTurn | None:
        """The last turn of a session if another node took it; otherwise None, also if there is no such session."""
        last = """t.repo = ?1 AND t.session = ?2 AND t.turn =
            (SELECT max(turn) FROM turns WHERE repo = ?1 AND session = ?2)"""
        with self._database.reading() as connection:
            found = rows(connection, f"{_SELECT} AND {last}", repo, session)
        return AwayTurn(**found[0]) if found else None

    def get(self, turn_id: int) -> AwayTurn | None:
        """A turn of another node."""
        with self._database.reading() as connection:
            found = rows(connection, f"{_SELECT} AND t.id = ?", turn_id)
        return AwayTurn(**found[0]) if found else None

    def with_commit(self, repo: str, commit: str) -> AwayTurn | None:
        """A turn of a repository that another node took with this commit."""
        with self._database.reading() as connection:
            found = rows(connection, f"{_SELECT} AND t.repo = ? AND t.commit_id = ? LIMIT 1", repo, commit)
        return AwayTurn(**found[0]) if found else None

    def of_session(self, repo: str, session: str) -> list[AwayTurn]:
        """The turns of a session that other nodes took, oldest first."""
        with self._database.reading() as connection:
            found = rows(connection, f"{_SELECT} AND t.repo = ? AND t.session = ? ORDER BY t.turn", repo, session)
        return [AwayTurn(**row) for row in found]
