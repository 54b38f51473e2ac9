"""What sessions are found by: the paths that each turn changed, the messages of its commits, and its notes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from appliance.core.store.cursors import LARGEST
from appliance.core.store.database import Database, rows
from appliance.core.store.turn_details import words_of_notes

if TYPE_CHECKING:
    import sqlite_utils


AWAY = 2
"""`turns.searchable` of a turn whose objects are not here: it is found by its subject and notes, and not by paths."""


class TurnToIndex(NamedTuple):
    """A turn that is not indexed yet.

    `previous` is the commit of the turn before it, and `previous_id` its id, if that one has the same base; else None.
    """

    id: int
    repo: str
    session: str
    commit: str
    base: str | None
    previous_id: int | None
    previous: str | None


@dataclass(frozen=True)
class TurnContents:
    """What a turn changed against the turn before it, or against the base. `paths` are in git's order.

    If there were too many, `known_to` is the last one in `paths`, or empty if none is known: the turn may have changed
    any path after it. None says that `paths` are all.
    """

    paths: Sequence[bytes] = ()
    known_to: bytes | None = None
    messages: str = ""


class TurnIndexStore:
    """The paths and messages in `database`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def missing(self, below: int = LARGEST, limit: int = 100) -> list[TurnToIndex]:
        """Turns that are not indexed yet, newest first, with ids below the given one."""
        with self._database.reading() as connection:
            found = rows(
                connection,
                """SELECT t.id, t.repo, t.session, t.commit_id AS "commit", t.base, p.id AS previous_id,
                       p.commit_id AS previous
                   FROM turns t LEFT JOIN turns p ON p.repo = t.repo AND p.session = t.session
                       AND p.turn = t.turn - 1 AND p.base IS t.base
                   WHERE t.searchable = 0 AND t.id < ? ORDER BY t.id DESC LIMIT ?""",
                below,
                limit,
            )
        return [TurnToIndex(**row) for row in found]

    def pending(self) -> int:
        """How many turns are not indexed yet."""
        with self._database.reading() as connection:
            [found] = rows(connection, "SELECT count(*) AS n FROM turns WHERE searchable = 0")
        return int(found["n"])

    def path_count(self) -> int:
        """How many paths are stored, of all turns together."""
        with self._database.reading() as connection:
            [found] = rows(connection, "SELECT coalesce(sum(paths), 0) AS n FROM turn_texts")
        return int(found["n"])

    def record(self, turn: TurnToIndex, contents: TurnContents) -> bool:
        """Stores what a turn is found by. Returns False, and stores nothing, if that is no longer asked for.

        That is so if the turn ended, or another process indexed it, or the turn before it ended, which it was compared
        with.
        """
        with self._database.writing() as connection:
            updated = connection.execute(
                """UPDATE turns SET searchable = 1 WHERE id = ?1 AND searchable = 0
                   AND (?2 IS NULL OR EXISTS (SELECT 1 FROM turns p WHERE p.id = ?2))""",
                [turn.id, turn.previous_id],
            )
            if not updated.rowcount:
                return False
            connection.execute(
                "INSERT INTO turn_texts (turn_id, paths, known_to, text) VALUES (?, ?, ?, ?)",
                [
                    turn.id,
                    len(contents.paths),
                    contents.known_to,
                    folded(contents.messages + words_of_notes(connection, turn.id)),
                ],
            )
            # git names a path twice if a tree of the upstream does, and such a turn must not hold up the others.
            connection.conn.executemany(
                "INSERT OR IGNORE INTO turn_paths (turn_id, path) VALUES (?, ?)",
                [(turn.id, path) for path in contents.paths],
            )
        return True

    def away(self, repo: str) -> list[int]:
        """The ids of the turns of other nodes whose objects were not here."""
        with self._database.reading() as connection:
            found = rows(connection, "SELECT id FROM turns WHERE away = 1 AND repo = ? AND searchable = ?", repo, AWAY)
        return [int(row["id"]) for row in found]

    def brought(self, turn_id: int) -> None:
        """Has a turn of another node read whose objects are here now."""
        with self._database.writing() as connection:
            updated = connection.execute(
                "UPDATE turns SET searchable = 0 WHERE id = ? AND searchable = ?", [turn_id, AWAY]
            )
            if updated.rowcount:
                connection.execute("DELETE FROM turn_texts WHERE turn_id = ?", [turn_id])

    def forget_empty(self, repo: str) -> None:
        """Has the turns of a repository that were indexed with nothing indexed again."""
        empty = "SELECT 1 FROM turn_texts x WHERE x.turn_id = turns.id AND x.text = '' AND x.paths = 0"
        with self._database.writing() as connection:
            connection.execute(
                f"UPDATE turns SET searchable = 0 WHERE repo = ? AND searchable = 1 AND EXISTS ({empty})", [repo]
            )
            connection.execute("DELETE FROM turn_texts WHERE turn_id IN (SELECT id FROM turns WHERE searchable = 0)")


def forget_session(connection: sqlite_utils.Database, repo: str, session: str) -> None:
    """Has the turns of a session indexed anew, because some that others were compared with are gone."""
    of_session = "WHERE repo = ? AND session = ? AND searchable = 1"
    connection.execute(f"DELETE FROM turn_texts WHERE turn_id IN (SELECT id FROM turns {of_session})", [repo, session])
    connection.execute(f"UPDATE turns SET searchable = 0 {of_session}", [repo, session])


def index_away(connection: sqlite_utils.Database, turn_id: int, subject: str) -> None:
    """Has a turn whose objects are not here be found by what its row says, inside the caller's transaction."""
    text = folded(subject + words_of_notes(connection, turn_id))
    connection.execute("INSERT INTO turn_texts (turn_id, paths, text) VALUES (?, 0, ?)", [turn_id, text])
    connection.execute("UPDATE turns SET searchable = ? WHERE id = ?", [AWAY, turn_id])


def folded(text: str) -> str:
    """Text as it is stored and searched: upper and lower case are the same in every script, not in ASCII alone."""
    return text.encode("utf-8", "replace").decode().casefold()
