"""What follows from the turns of a session: their numbers, and the session's own row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from appliance.core.models import Turn
from appliance.core.store.database import rows

if TYPE_CHECKING:
    import sqlite_utils


def renumber(connection: sqlite_utils.Database, repo: str, session: str) -> bool:
    """Numbers the turns of a session from 1, those with a place in the fleet's order first, then in that of the log.

    Returns whether a turn that had a number has another one now.
    """
    found = rows(
        connection,
        "SELECT id, turn FROM turns WHERE repo = ? AND session = ? ORDER BY seq IS NULL, seq, id",
        repo,
        session,
    )
    wrong = [(number, row["id"], row["turn"]) for number, row in enumerate(found, 1) if row["turn"] != number]
    # Through negative numbers, so that all stay unique.
    many = connection.conn.executemany
    many("UPDATE turns SET turn = -id WHERE id = ?", [(turn_id,) for _, turn_id, _ in wrong])
    many("UPDATE turns SET turn = ? WHERE id = ?", [(number, turn_id) for number, turn_id, _ in wrong])
    return any(before > 0 for _, _, before in wrong)


def summarise(connection: sqlite_utils.Database, repo: str, session: str, *, pushed: bool = True) -> None:
    """Writes the row of a session from its turns, of which there must be one.

    A session that was pushed here leaves the archive. One that is new here is kept if the fleet keeps it.
    """
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
               deletions, first_at, last_at, client, guest, node, bytes, kept)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16,
                   EXISTS (SELECT 1 FROM fleet_kept k WHERE k.repo = ?1 AND k.session = ?2))
           ON CONFLICT (repo, session) DO UPDATE SET tip = excluded.tip, base = excluded.base,
               turns = excluded.turns, commits = excluded.commits, files_changed = excluded.files_changed,
               insertions = excluded.insertions, deletions = excluded.deletions,
               first_at = excluded.first_at, last_at = excluded.last_at,
               client = excluded.client, guest = excluded.guest, node = excluded.node, bytes = excluded.bytes,
               archived = CASE WHEN ?17 THEN 0 ELSE archived END""",
        [
            repo, session, f"refs/agents/{session}", last["commit_id"], last["base"], last["turn"],
            last["commits"], last["files_changed"], last["insertions"], last["deletions"],
            first["at"], last["at"], last["client"], last["guest"], last["node"], total["n"], int(pushed),
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
