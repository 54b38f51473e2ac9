"""Turns that the fleet has before this database: their place, and which turn of this node they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from appliance.core.models import Turn
from appliance.core.store.audit import UNKNOWN
from appliance.core.store.database import StoreError, rows
from appliance.core.store.session_ends import node_name

if TYPE_CHECKING:
    import sqlite_utils


def take_place(connection: sqlite_utils.Database, turn: Turn) -> bool:
    """Gives a turn that was just recorded its name in the fleet, and its place if it has one. Returns whether it has.

    Its row may have arrived before: the push was stored in the fleet before this node knew its outcome, or this
    database is an older copy and the turn was found in the mirror. Raises StoreError if the log has no attempt of it:
    the database was replaced by an older one, and the log will give its id to another turn.
    """
    event = rows(connection, "SELECT hash FROM audit_events WHERE id = ?", turn.id)
    if not event:
        raise StoreError(
            f"the audit log has no event {turn.id}, so the turn of {turn.session} cannot be recorded",
            hint="the database was replaced by an older copy; restart serve, which finds the turn in the mirror",
        )
    uid = event[0]["hash"]
    found = rows(connection, "SELECT id, uid, seq, node FROM turns WHERE uid = ? AND away = 1", uid)
    if not found and turn.client == UNKNOWN:
        found = [row for row in _of_this_node(connection, turn) if row["document_id"] == turn.id]
    if not found:
        connection.execute("UPDATE turns SET uid = ? WHERE id = ?", [uid, turn.id])
        return False
    [away] = found
    for table in ("fleet_turns", "turn_attachments"):
        connection.execute(f"UPDATE {table} SET turn_id = ? WHERE turn_id = ?", [turn.id, away["id"]])
    connection.execute("DELETE FROM turns WHERE id = ?", [away["id"]])
    connection.execute(
        "UPDATE turns SET uid = ?, seq = ?, node = ? WHERE id = ?", [away["uid"], away["seq"], away["node"], turn.id]
    )
    return True


def found_again(connection: sqlite_utils.Database, row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The turn of this node that a row speaks of under another name, because it was found in the mirror; or none.

    `row` is as in the fleet's stream.
    """
    if row["node"] != node_name(connection):
        return []
    return rows(
        connection,
        """SELECT id, uid, seq, away, repo, session, commit_id FROM turns WHERE id = ? AND repo = ? AND session = ?
           AND commit_id = ? AND away = 0 AND seq IS NULL AND client = ?""",
        row["id"],
        row["repo"],
        row["session"],
        row["commit"],
        UNKNOWN,
    )


def _of_this_node(connection: sqlite_utils.Database, turn: Turn) -> list[dict[str, Any]]:
    return rows(
        connection,
        """SELECT t.id, t.uid, t.seq, t.node, json_extract(f.document, '$.id') AS document_id
           FROM turns t JOIN fleet_turns f ON f.turn_id = t.id
           WHERE t.repo = ? AND t.session = ? AND t.commit_id = ? AND t.away = 1 AND t.node = ?""",
        turn.repo,
        turn.session,
        turn.commit,
        node_name(connection),
    )
