"""What follows from the turns of a session: their numbers, and the session's own row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from appliance.core.models import Turn
from appliance.core.store.database import rows

if TYPE_CHECKING:
    import sqlite_utils


def renumber(connection: sqlite_utils.Database, repo: str, session: str) -> None:
    """Numbers the turns from 1 in the order of the log, through negative numbers so that all stay unique."""
    of_session = "WHERE repo = ? AND session = ?"
    connection.execute(f"UPDATE turns SET turn = -id {of_session}", [repo, session])
    connection.execute(
        f"""UPDATE turns SET turn = (SELECT count(*) FROM turns t WHERE t.repo = turns.repo
            AND t.session = turns.session AND t.id <= turns.id) {of_session}""",
        [repo, session],
    )


def summarise(connection: sqlite_utils.Database, repo: str, session: str) -> None:
    """Writes the row of a session from its turns, of which there must be one; a pushed session leaves the archive."""
    [first, last] = [
        rows(
            connection,
            f"SELECT * FROM turns WHERE repo = ? AND session = ? ORDER BY turn {order} LIMIT 1",
            repo,
            session,
        )[0]
        for order in ("ASC", "DESC")
    ]
    [total] = rows(connection, "SELECT sum(bytes) AS n FROM turns WHERE repo = ? AND session = ?", repo, session)
    connection.execute(
        """INSERT INTO sessions (repo, session, ref, tip, base, turns, commits, files_changed, insertions,
               deletions, first_at, last_at, client, guest, bytes)
               VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
           ON CONFLICT (repo, session) DO UPDATE SET tip = excluded.tip, base = excluded.base,
               turns = excluded.turns, commits = excluded.commits, files_changed = excluded.files_changed,
               insertions = excluded.insertions, deletions = excluded.deletions,
               first_at = excluded.first_at, last_at = excluded.last_at,
               client = excluded.client, guest = excluded.guest, bytes = excluded.bytes, archived = 0""",
        [
            repo, session, f"refs/agents/{session}", last["commit_id"], last["base"], last["turn"],
            last["commits"], last["files_changed"], last["insertions"], last["deletions"],
            first["at"], last["at"], last["client"], last["guest"], total["n"],
        ],
    )  # fmt: skip


def turn_of(row: dict[str, Any]) -> Turn:
    """The turn that a row of `turns` describes."""
    return Turn(
        id=row["id"],
        repo=row["repo"],
        session=row["session"],
        commit=row["commit_id"],
        base=row["base"],
        at=row["at"],
        subject=row["subject"],
        commits=row["commits"],
        files_changed=row["files_changed"],
        insertions=row["insertions"],
        deletions=row["deletions"],
        client=row["client"],
        bytes=row["bytes"],
        guest=row["guest"],
        node=row["node"],
        away=bool(row["away"]),
    )
