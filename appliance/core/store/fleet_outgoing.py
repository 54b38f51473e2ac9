"""What this node recorded and the fleet does not have yet: turns without a place in its stream, and attachments."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from appliance.core.models import Turn
from appliance.core.store.database import Database, rows
from appliance.core.store.fleet import enqueue
from appliance.core.store.session_summary import renumber, summarise, turn_of
from appliance.core.store.turn_details import AttachmentRow

if TYPE_CHECKING:
    import sqlite_utils

_TURNS = "turns INDEXED BY turns_to_send"
"""SQLite prefers another index otherwise, and goes through all that was ever recorded. So it does without
CROSS in the joins below."""
_WAITING = "seq IS NULL AND away = 0"


class SessionName(NamedTuple):
    """A session of a repository."""

    repo: str
    session: str


@dataclass(frozen=True)
class UnsentTurn:
    """A turn that goes out. `uid` is the hash of its attempt, None if the log does not have that."""

    turn: Turn
    uid: str | None
    old: str | None
    notes: Mapping[str, str]


@dataclass(frozen=True)
class UnsentAttachment:
    """An attachment of a turn that the fleet has."""

    row: AttachmentRow
    session: str
    uid: str


@dataclass(frozen=True)
class Unsent:
    """How much of each repository waits. `since` is the time of the oldest turn, in RFC 3339."""

    turns: Mapping[str, int]
    attachments: Mapping[str, int]
    since: Mapping[str, str]


class OutgoingStore:
    """What goes out of `database`. Reads that may be long have a connection of their own. Raises StoreError."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def unsent(self) -> Unsent:
        """Counts what waits, by repository, whether or not it may go out."""
        with self._database.searching() as connection:
            turns = rows(
                connection, f"SELECT repo, count(*) AS n, min(at) AS at FROM {_TURNS} WHERE {_WAITING} GROUP BY repo"
            )
            files = rows(
                connection,
                """SELECT t.repo, count(*) AS n FROM turn_attachments d INDEXED BY attachments_to_send
                   CROSS JOIN turns t ON t.id = d.turn_id WHERE d.sent = 0 AND t.away = 0 GROUP BY 1""",
            )
        return Unsent(
            {row["repo"]: row["n"] for row in turns},
            {row["repo"]: row["n"] for row in files},
            {row["repo"]: row["at"] for row in turns},
        )

    def sessions(self, repos: Collection[str], apart_from: Sequence[int], limit: int) -> list[SessionName]:
        """The sessions of these repositories with turns that wait, apart from some; the oldest first."""
        with self._database.searching() as connection:
            found = rows(
                connection,
                f"""SELECT repo, session FROM {_TURNS} WHERE {_WAITING} AND repo IN (SELECT value FROM json_each(?))
                    AND id NOT IN (SELECT value FROM json_each(?)) GROUP BY repo, session ORDER BY min(id) LIMIT ?""",
                json.dumps(list(repos)),
                json.dumps(list(apart_from)),
                limit,
            )
        return [SessionName(row["repo"], row["session"]) for row in found]

    def turns(
        self, name: SessionName, apart_from: Sequence[int], before: int | None = None, limit: int = 20
    ) -> list[UnsentTurn]:
        """The turns of a session that wait, apart from some, oldest first; with `before`, those before that turn."""
        with self._database.reading() as connection:
            found = rows(
                connection,
                f"""SELECT * FROM {_TURNS} WHERE {_WAITING} AND repo = ?1 AND session = ?2 AND (?3 IS NULL OR id < ?3)
                    AND id NOT IN (SELECT value FROM json_each(?4)) ORDER BY id LIMIT ?5""",
                *name,
                before,
                json.dumps(list(apart_from)),
                limit,
            )
            return [_unsent(connection, turn_of(row)) for row in found]

    def described(self, turn: Turn) -> UnsentTurn:
        """A turn that is not recorded yet, with what the log says of its attempt."""
        with self._database.reading() as connection:
            return _unsent(connection, turn)

    def sent(self, turn: Turn, uid: str, node: str, seq: int, document: str) -> bool:
        """Stores the place of a turn in the stream, and its row there; False if the turn was ended meanwhile.

        Whoever ended it could not know that the fleet has it, and may have told nobody: then the fleet is told now.
        """
        with self._database.writing() as connection:
            changed = connection.execute(
                "UPDATE turns SET seq = coalesce(seq, ?), node = ?, uid = ? WHERE id = ?", [seq, node, uid, turn.id]
            ).rowcount
            if not changed:
                ended = {"repo": turn.repo, "session": turn.session, "upto": 0, "uids": [uid], "rows": [seq]}
                enqueue(connection, "end", ended | {"reason": "it ended while a turn of it went out"}, time.time())
                return False
            connection.execute(
                """INSERT INTO fleet_turns (uid, turn_id, document) VALUES (?, ?, ?)
                   ON CONFLICT (uid) DO UPDATE SET turn_id = excluded.turn_id""",
                [uid, turn.id, document],
            )
            of_session, others = "repo = ? AND session = ?", "SELECT 1 FROM turns WHERE away = 1 AND"
            if rows(connection, f"{others} {of_session} LIMIT 1", turn.repo, turn.session):
                # Its place may be before that of a turn of another node which arrived first.
                renumber(connection, turn.repo, turn.session)
                summarise(connection, turn.repo, turn.session)
            connection.execute(
                f"""UPDATE sessions SET node = (SELECT t.node FROM turns t WHERE t.repo = sessions.repo
                    AND t.session = sessions.session ORDER BY t.turn DESC LIMIT 1) WHERE {of_session}""",
                [turn.repo, turn.session],
            )
        return True

    def attachments(self, repos: Collection[str], limit: int) -> list[UnsentAttachment]:
        """Attachments of these repositories that wait and whose turn the fleet has, oldest first."""
        with self._database.searching() as connection:
            found = rows(
                connection,
                """SELECT t.repo, t.session, t.uid, d.turn_id, d.name, d.size, d.sha256
                   FROM turn_attachments d INDEXED BY attachments_to_send CROSS JOIN turns t ON t.id = d.turn_id
                   WHERE d.sent = 0 AND t.away = 0 AND t.seq IS NOT NULL AND t.uid IS NOT NULL
                   AND t.repo IN (SELECT value FROM json_each(?)) ORDER BY d.turn_id, d.name
                   LIMIT ?""",
                json.dumps(list(repos)),
                limit,
            )
        return [
            UnsentAttachment(
                AttachmentRow(row["repo"], row["turn_id"], row["name"], row["size"], row["sha256"]),
                row["session"],
                row["uid"],
            )
            for row in found
        ]

    def attachment_sent(self, row: AttachmentRow, seq: int) -> None:
        """Stores the place of an attachment's row in the stream, by which the row can be removed again."""
        with self._database.writing() as connection:
            connection.execute(
                "UPDATE turn_attachments SET sent = ? WHERE turn_id = ? AND name = ?", [seq, row.turn_id, row.name]
            )

    def recorded(self, turns: Collection[int]) -> set[int]:
        """Those of these turns that have not ended."""
        with self._database.reading() as connection:
            found = rows(
                connection, "SELECT id FROM turns WHERE id IN (SELECT value FROM json_each(?))", json.dumps(list(turns))
            )
        return {row["id"] for row in found}

    def is_waited_for(self, name: SessionName, apart_from: Sequence[int]) -> bool:
        """Whether the session has a turn that waits, apart from some."""
        with self._database.reading() as connection:
            found = rows(
                connection,
                f"""SELECT 1 FROM {_TURNS} WHERE {_WAITING} AND repo = ? AND session = ?
                    AND id NOT IN (SELECT value FROM json_each(?)) LIMIT 1""",
                *name,
                json.dumps(list(apart_from)),
            )
        return bool(found)

    def is_attached(self, sha256: str) -> bool:
        """Whether any turn that this node knows has an attachment with these bytes."""
        with self._database.reading() as connection:
            return bool(rows(connection, "SELECT 1 FROM turn_attachments WHERE sha256 = ? LIMIT 1", sha256))


def stored_in_fleet(connection: sqlite_utils.Database, turns: Sequence[int]) -> dict[str, list[Any]]:
    """What the fleet has of turns that are about to be ended, beside their bundles.

    `files` are the SHA-256 of attachments, `rows` places in the stream.
    """
    ids = json.dumps(list(turns))
    these = "IN (SELECT value FROM json_each(?))"
    places = rows(connection, f"SELECT seq FROM turns WHERE seq > 0 AND id {these}", ids)
    files = rows(connection, f"SELECT sha256, sent FROM turn_attachments WHERE turn_id {these}", ids)
    return {
        "files": sorted({row["sha256"] for row in files}),
        "rows": [*(row["seq"] for row in places), *(row["sent"] for row in files if row["sent"])],
    }


def _unsent(connection: sqlite_utils.Database, turn: Turn) -> UnsentTurn:
    attempt = rows(
        connection, "SELECT hash, old FROM audit_events WHERE id = ? AND kind = 'attempt' AND repo = ?",
        turn.id, turn.repo,
    )  # fmt: skip
    notes = rows(connection, "SELECT key, value FROM turn_notes WHERE turn_id = ? ORDER BY key", turn.id)
    uid, old = (attempt[0]["hash"], attempt[0]["old"]) if attempt else (None, None)
    return UnsentTurn(turn, uid, old, {note["key"]: note["value"] for note in notes})
