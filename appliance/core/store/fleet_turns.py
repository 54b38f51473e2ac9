"""Applies what other nodes recorded, ended and kept: the fleet's stream, in its order, each batch in one transaction.

The order of the stream is the order of the turns on every node. Whatever this node has and the fleet does not have yet
follows in the order of its log.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from appliance.core.store.audit import UNKNOWN
from appliance.core.store.database import Database, StoreError, rows
from appliance.core.store.fleet import enqueue_kept, set_state
from appliance.core.store.session_ends import NODE, READ_TO, end_elsewhere, node_name, read_to, set_kept
from appliance.core.store.session_summary import renumber, summarise
from appliance.core.store.turn_index import forget_session, index_away
from appliance.core.store.turn_places import found_again

if TYPE_CHECKING:
    import sqlite_utils

STREAM = "turns_stream"
"""The key under which it says which stream that was: when it was made."""
LAST = "turns_last"
"""The key of the `digest` of the last message that was read."""
NEXT_AWAY = "next_away"
"""The key of the id of the next turn of another node."""
FIRST_AWAY = 10**15
"""The id of the first turn of another node, above every audit id."""

_COPIED = (
    "repo", "session", "base", "at", "subject", "commits", "files_changed", "insertions", "deletions", "client",
    "guest", "bytes", "node", "uid",
)  # fmt: skip
"""The columns of a turn that are as in the stream."""

Key = tuple[str, str]
"""A repository and a session."""


@dataclass(frozen=True)
class Arrived:
    """One message of the stream at its place `seq`. `text` is how it stands there, `digest` tells it from others.

    `kind` is `turn`, `attachment`, `end`, `kept` or empty, and `row` has the fields of that message.
    """

    seq: int
    kind: str = ""
    row: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""
    digest: str = ""


@dataclass(frozen=True)
class Met:
    """A turn of a session in which this node has turns follows one of another node, or the other way round.

    `continues` says whether it was pushed onto the turn before it.
    """

    repo: str
    session: str
    nodes: tuple[str, ...]
    node: str
    commit: str
    continues: bool


@dataclass
class Applied:
    """What a batch changed: sessions with other turns, sessions that ended, by the node that ended them."""

    changed: set[Key] = field(default_factory=set)
    ended: dict[Key, tuple[str, str]] = field(default_factory=dict)
    met: list[Met] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


class FleetTurnStore:
    """The turns of the fleet in `database`. `clock` gives Unix seconds. Every method raises StoreError."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock

    def join(self, node: str) -> None:
        """Says that this node is `node` of a fleet, so that ends and keeps are queued for the others."""
        with self._database.reading() as connection:
            before = node_name(connection)
        if before == node:
            return
        with self._database.writing() as connection:
            set_state(connection, NODE, node)
            for table in ("turns", "sessions"):
                connection.execute(f"UPDATE {table} SET node = ? WHERE node IS NULL", [node])
            if before is None:
                self._tell_kept(connection)

    def leave(self) -> None:
        """Says that this node is a node alone."""
        with self._database.reading() as connection:
            if node_name(connection) is None:
                return
        with self._database.writing() as connection:
            connection.execute("DELETE FROM fleet_state WHERE key = ?", [NODE])

    def position(self) -> int:
        """The place in the stream up to which it was read."""
        with self._database.reading() as connection:
            return read_to(connection)

    def begin(self, created: str, last: int, digest: str | None = None) -> int:
        """The place in the stream from which on it is to be read: `position`, or 0 if it is another stream.

        `created` says which stream it is, `last` where it ends, and `digest` what stands at `position` now, None if
        nothing does. Another stream, and one whose end was lost, are read from the start, and the turns of this node go
        out again.
        """
        with self._database.reading() as connection:
            state = {row["key"]: row["value"] for row in rows(connection, "SELECT key, value FROM fleet_state")}
        position = int(state.get(READ_TO, 0))
        is_known = digest in (None, state.get(LAST))
        if state.get(STREAM) == created and position <= last and is_known:
            return position
        with self._database.writing() as connection:
            set_state(connection, STREAM, created)
            set_state(connection, READ_TO, "0")
            if position:
                self._forget_places(connection)
        return 0

    def apply(self, batch: Sequence[Arrived]) -> Applied:
        """Applies messages in the order of the stream, and notes how far it was read, in one transaction.

        A message that the database refuses is skipped.
        """
        try:
            return self._apply(batch)
        except StoreError as error:
            if not isinstance(error.__cause__, sqlite3.IntegrityError | sqlite3.InterfaceError):
                raise
            if len(batch) == 1:
                done = self._apply([Arrived(batch[0].seq, digest=batch[0].digest)])
                done.refused.append(f"the database refuses it: {error.__cause__}")
                return done
        done = Applied()
        for each in batch:
            one = self.apply([each])
            done.changed |= one.changed
            done.ended |= one.ended
            done.met += one.met
            done.refused += one.refused
        return done

    def leftovers(self) -> dict[str, dict[str, dict[int, str]]]:
        """The turns that ended on other nodes and may have refs here, as id and commit by repository and session."""
        with self._database.reading() as connection:
            found = rows(connection, "SELECT * FROM fleet_leftovers")
        left: dict[str, dict[str, dict[int, str]]] = {}
        for row in found:
            left.setdefault(row["repo"], {}).setdefault(row["session"], {})[row["turn_id"]] = row["commit_id"]
        return left

    def cleaned(self, repo: str, session: str, turns: Mapping[int, str]) -> None:
        """Notes that the refs of these leftovers are gone."""
        with self._database.writing() as connection:
            connection.conn.executemany(
                "DELETE FROM fleet_leftovers WHERE repo = ? AND session = ? AND turn_id = ?",
                [(repo, session, turn_id) for turn_id in turns],
            )

    def _apply(self, batch: Sequence[Arrived]) -> Applied:
        done, placed = Applied(), list[int]()
        with self._database.writing() as connection:
            position, digest = read_to(connection), None
            for each in batch:
                if each.seq <= position:
                    continue
                position, digest = each.seq, each.digest
                if each.kind == "end":
                    # An end reads the numbers and the row of the session.
                    self._settle(connection, done, placed)
                placed += self._one(connection, each, done)
            self._settle(connection, done, placed)
            set_state(connection, READ_TO, str(position))
            if digest is not None:
                set_state(connection, LAST, digest)
        return done

    def _one(self, connection: sqlite_utils.Database, each: Arrived, done: Applied) -> list[int]:
        """Applies one message; returns the ids of turns that it gave a place."""
        row = each.row
        if each.kind == "turn":
            return self._turn(connection, each, done)
        if each.kind == "attachment":
            for turn in rows(connection, "SELECT id FROM turns WHERE uid = ?", row["uid"]):
                _attach(connection, turn["id"], row["attachment"], each.seq)
        elif each.kind == "kept":
            set_kept(connection, row["repo"], row["session"], row["kept"])
        elif (
            each.kind == "end"
            and _is_first(connection, each)
            and end_elsewhere(connection, row, each.seq, self._clock())
        ):
            done.ended[row["repo"], row["session"]] = (row["node"], row["reason"])
        return []

    def _turn(self, connection: sqlite_utils.Database, each: Arrived, done: Applied) -> list[int]:
        row = each.row
        if rows(connection, "SELECT 1 FROM fleet_ended WHERE uid = ?", row["uid"]):
            return []
        query = "SELECT id, uid, seq, away, repo, session, commit_id FROM turns WHERE uid = ?"
        found = rows(connection, query, row["uid"]) or found_again(connection, row)
        if found:
            [turn] = found
            if turn["seq"] is not None and 0 < turn["seq"] < each.seq:
                return []
            if (turn["repo"], turn["session"], turn["commit_id"]) != (row["repo"], row["session"], row["commit"]):
                done.refused.append(f"it speaks of another turn than {turn['id']} here")
                return []
            turn_id = int(turn["id"])
            connection.execute(
                "UPDATE turns SET uid = ?, seq = ?, node = ? WHERE id = ?", [row["uid"], each.seq, row["node"], turn_id]
            )
        else:
            turn_id = _add(connection, row, each.seq)
        connection.execute(
            "INSERT OR REPLACE INTO fleet_turns (uid, turn_id, document) VALUES (?, ?, ?)",
            [row["uid"], turn_id, each.text],
        )
        for attached in row["attachments"]:
            _attach(connection, turn_id, attached, each.seq)
        if not found:
            index_away(connection, turn_id, row["subject"])
        if row["client"] == UNKNOWN:
            connection.execute("INSERT OR IGNORE INTO fleet_kept VALUES (?, ?)", [row["repo"], row["session"]])
            connection.execute(
                "UPDATE sessions SET kept = 1 WHERE repo = ? AND session = ?", [row["repo"], row["session"]]
            )
        done.changed.add((row["repo"], row["session"]))
        return [turn_id]

    def _settle(self, connection: sqlite_utils.Database, done: Applied, placed: list[int]) -> None:
        """Numbers and summarises the sessions of the turns that got a place."""
        sessions: dict[Key, list[int]] = {}
        for turn_id in placed:
            for row in rows(connection, "SELECT repo, session FROM turns WHERE id = ?", turn_id):
                sessions.setdefault((row["repo"], row["session"]), []).append(turn_id)
        for (repo, session), ids in sessions.items():
            if renumber(connection, repo, session):
                forget_session(connection, repo, session)
            summarise(connection, repo, session, pushed=False)
            done.met += _met(connection, repo, session, ids)
        placed.clear()

    def _forget_places(self, connection: sqlite_utils.Database) -> None:
        """Prepares for a stream that was made anew, and in which nothing is yet.

        The turns of others stay before those that come, in the order that they had on every node.
        """
        connection.execute("UPDATE turns SET seq = NULL WHERE away = 0")
        connection.execute("UPDATE turn_attachments SET sent = 0")
        [highest] = rows(connection, "SELECT max(seq) AS seq FROM turns WHERE away = 1")
        connection.execute("UPDATE turns SET seq = seq - ? WHERE away = 1", [max(0, highest["seq"] or 0) + 1])
        connection.execute("DELETE FROM fleet_ended")
        connection.execute(
            """UPDATE fleet_outbox SET document = json_set(document, '$.upto', 0, '$.rows', json('[]'))
               WHERE kind = 'end'"""
        )
        for row in rows(connection, "SELECT DISTINCT repo, session FROM turns"):
            if renumber(connection, row["repo"], row["session"]):
                forget_session(connection, row["repo"], row["session"])
                summarise(connection, row["repo"], row["session"], pushed=False)
        self._tell_kept(connection)

    def _tell_kept(self, connection: sqlite_utils.Database) -> None:
        for row in rows(connection, "SELECT repo, session FROM sessions WHERE kept = 1 ORDER BY repo, session"):
            connection.execute("INSERT OR IGNORE INTO fleet_kept VALUES (?, ?)", [row["repo"], row["session"]])
            enqueue_kept(connection, row["repo"], row["session"], True, self._clock())


def _is_first(connection: sqlite_utils.Database, end: Arrived) -> bool:
    """Whether an end is read for the first time.

    A node that was killed says it again, and the next session of that name may be kept by then. Its digest is noted
    among the uids of turns that ended, which are SHA-256 as well.
    """
    return connection.execute("INSERT OR IGNORE INTO fleet_ended VALUES (?)", [end.digest]).rowcount == 1


def _add(connection: sqlite_utils.Database, row: Mapping[str, Any], seq: int) -> int:
    """Adds a turn of another node; its number follows. Returns its id."""
    found = rows(connection, "SELECT value FROM fleet_state WHERE key = ?", NEXT_AWAY)
    [highest] = rows(connection, "SELECT max(id) AS id FROM turns")
    turn_id = max(FIRST_AWAY, int(found[0]["value"]) if found else 0, (highest["id"] or 0) + 1)
    set_state(connection, NEXT_AWAY, str(turn_id + 1))
    values = {name: row[name] for name in _COPIED}
    values |= {"id": turn_id, "turn": -turn_id, "commit_id": row["commit"], "seq": seq, "away": 1}
    connection.execute(
        f"INSERT INTO turns ({', '.join(values)}) VALUES ({', '.join('?' * len(values))})", list(values.values())
    )
    for key, value in row["notes"].items():
        connection.execute("INSERT INTO turn_notes VALUES (?, ?, ?)", [turn_id, key, value])
    return turn_id


def _attach(connection: sqlite_utils.Database, turn_id: int, attached: Mapping[str, Any], seq: int) -> None:
    connection.execute(
        """INSERT INTO turn_attachments (turn_id, name, size, sha256, sent) VALUES (?, ?, ?, ?, ?)
           ON CONFLICT (turn_id, name) DO UPDATE SET sent = excluded.sent
           WHERE sha256 = excluded.sha256 AND sent = 0""",
        [turn_id, attached["name"], attached["size"], attached["sha256"], seq],
    )


def _met(connection: sqlite_utils.Database, repo: str, session: str, ids: Sequence[int]) -> list[Met]:
    found = rows(
        connection,
        """SELECT t.node, t.commit_id, b.commit_id AS "before", json_extract(f.document, '$.old') AS old FROM turns t
           JOIN turns b ON b.repo = t.repo AND b.session = t.session AND b.turn = t.turn - 1
           LEFT JOIN fleet_turns f ON f.uid = t.uid
           WHERE t.id IN (SELECT value FROM json_each(?)) AND b.node IS NOT t.node ORDER BY t.turn""",
        json.dumps(ids),
    )
    if not found:
        return []
    of_session = "FROM turns WHERE repo = ? AND session = ?"
    if not rows(connection, f"SELECT 1 {of_session} AND away = 0 LIMIT 1", repo, session):
        return []
    named = rows(connection, f"SELECT DISTINCT node {of_session} AND node != '' ORDER BY node", repo, session)
    nodes = tuple(str(each["node"]) for each in named)
    return [
        Met(repo, session, nodes, str(turn["node"]), str(turn["commit_id"]), turn["old"] == turn["before"])
        for turn in found
        if len(nodes) > 1
    ]
