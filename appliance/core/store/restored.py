"""Writes turns that this node took, and lost with its disk, into a new database and its new log."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from appliance.core.store.chain import FOUND, append_event, highest_id
from appliance.core.store.log_heads import AcceptedLoss, note_loss
from appliance.core.store.session_summary import summarise
from appliance.core.store.stores import Stores
from appliance.core.store.turn_details import store_notes

if TYPE_CHECKING:
    import sqlite_utils

APART = 1000
"""New events get ids this far above all that are known, because the lost log may have had more than it published."""


@dataclass(frozen=True)
class RestoredTurn:
    """A turn as a row of `turns` (without its number), with the ref's value before it, and what belongs to it.

    `document` is the row in the fleet's stream. `attachments` are (name, size, SHA-256). A turn that is `away` has no
    objects here, and so no event in this node's log.
    """

    row: dict[str, Any]
    old: str | None
    document: str
    notes: dict[str, str]
    attachments: tuple[tuple[str, int, str], ...]

    @property
    def is_away(self) -> bool:
        """Whether the log is silent about it."""
        return bool(self.row["away"])


def write_restored(
    stores: Stores,
    node: str,
    turns: Sequence[RestoredTurn],
    kept: Collection[tuple[str, str]],
    losses: Iterable[AcceptedLoss],
    at: str,
) -> None:
    """Records turns in the fleet's order, in one transaction: each under its own id, in a log that has no event yet.

    `kept` are the sessions that retention leaves alone, `losses` what this log does not have of the lost ones.
    Raises StoreError.
    """
    losses = list(losses)
    own = sorted((turn for turn in turns if not turn.is_away), key=lambda turn: int(turn.row["id"]))
    with stores.audit.appending() as connection:
        for turn in own:
            append_event(
                connection,
                kind="attempt",
                id=turn.row["id"],
                at=turn.row["at"],
                verdict="accepted",
                reason=f"restored from the fleet, in which node {node} had recorded it",
                **_of_attempt(turn),
            )
        number = max([highest_id(connection), *(loss.last.id for loss in losses)]) + APART
        why = f"restored from the fleet as node {node}"
        append_event(
            connection, kind="note", id=number, at=at, push=FOUND, repo="", ref="", client="", reason=f"{why} at {at}"
        )
        for loss in losses:
            note_loss(connection, loss, why, at)
        for turn in own:
            append_event(
                connection,
                kind="outcome",
                at=at,
                attempt=turn.row["id"],
                outcome="applied",
                reason="restored from the fleet",
                **_of_attempt(turn),
            )
        for turn in turns:
            _insert(connection, turn)
        for repo, session in dict.fromkeys((turn.row["repo"], turn.row["session"]) for turn in turns):
            summarise(connection, repo, session)
            connection.execute(
                """UPDATE sessions SET kept = ?, node = (SELECT node FROM turns t WHERE t.repo = sessions.repo
                   AND t.session = sessions.session ORDER BY turn DESC LIMIT 1) WHERE repo = ? AND session = ?""",
                [int((repo, session) in kept), repo, session],
            )


def _of_attempt(turn: RestoredTurn) -> dict[str, Any]:
    row = turn.row
    return {
        "push": FOUND,
        "repo": row["repo"],
        "session": row["session"],
        "ref": f"refs/agents/{row['session']}",
        "old": turn.old,
        "new": row["commit_id"],
        "client": row["client"],
        "guest": row["guest"],
    }


def _insert(connection: sqlite_utils.Database, turn: RestoredTurn) -> None:
    row = turn.row
    [count] = connection.execute(
        "SELECT count(*) FROM turns WHERE repo = ? AND session = ?", [row["repo"], row["session"]]
    ).fetchone()
    connection.table("turns").insert({**row, "turn": count + 1})
    connection.execute("INSERT INTO fleet_turns VALUES (?, ?, ?)", [row["uid"], row["id"], turn.document])
    store_notes(connection, [row["id"]], turn.notes)
    for name, size, sha256 in turn.attachments:
        connection.execute("INSERT INTO turn_attachments VALUES (?, ?, ?, ?, 1)", [row["id"], name, size, sha256])
