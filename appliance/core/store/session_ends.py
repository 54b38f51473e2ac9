"""How sessions end, here or on another node of the fleet: their turns, their row, and what the fleet must be told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from appliance.core.errors import Conflict, NotFound
from appliance.core.store.audit import UNKNOWN
from appliance.core.store.chain import append_note
from appliance.core.store.database import rows
from appliance.core.store.fleet import enqueue, forget_kept
from appliance.core.store.fleet_outgoing import stored_in_fleet
from appliance.core.store.session_summary import renumber, summarise
from appliance.core.store.turn_index import forget_session
from appliance.core.units import rfc3339

if TYPE_CHECKING:
    import sqlite_utils

NODE = "fleet"
"""The key of the node's fleet state under which its name is; without it, this is a node alone."""
READ_TO = "turns_read"
"""The key that says how far this node has read the stream of turns."""
MOST_UIDS = 2000
"""Turns that one message about an end names."""

_UNBOOKED = """SELECT a.hash AS uid FROM audit_events a
    JOIN audit_events o ON o.attempt = a.id AND o.outcome = 'applied'
    WHERE a.repo = ?1 AND a.ref = ?2 AND a.id <= ?3 AND NOT EXISTS (SELECT 1 FROM turns t WHERE t.id = a.id)
    AND a.id > coalesce((SELECT max(e.last_attempt) FROM session_ends e WHERE e.repo = ?1 AND e.session = ?4), 0)"""


def node_name(connection: sqlite_utils.Database) -> str | None:
    """This node's name in its fleet; None on a node alone."""
    found = rows(connection, "SELECT value FROM fleet_state WHERE key = ?", NODE)
    return str(found[0]["value"]) if found else None


def read_to(connection: sqlite_utils.Database) -> int:
    """The place in the stream of turns up to which it was read."""
    found = rows(connection, "SELECT value FROM fleet_state WHERE key = ?", READ_TO)
    return int(found[0]["value"]) if found else 0


def end_session(
    connection: sqlite_utils.Database,
    session: Mapping[str, Any],
    last: int,
    upto: int | None,
    reason: str,
    at: float,
) -> None:
    """Ends a session, given by its row, inside the caller's transaction, and has every node of the fleet end it.

    Ends its turns up to the audit id `last`, and those of other nodes up to the place `upto` in the fleet's order, or
    all of them if it is None. Whatever is later stays, as a new session.
    """
    repo, name = session["repo"], session["session"]
    turns = _turns(connection, repo, name)
    later = [turn["seq"] for turn in turns if not turn["away"] and turn["id"] > last and turn["seq"] is not None]
    if upto is None:
        upto = min(later, default=2**62) - 1
    doomed = [turn for turn in turns if (turn["id"] <= last if not turn["away"] else _is_upto(turn, upto))]
    if node_name(connection) is not None:
        unbooked = rows(connection, _UNBOOKED, repo, session["ref"], last, name)
        named = [turn["uid"] for turn in (*doomed, *unbooked) if turn["uid"]]
        remember_ended(connection, named)
        # A place may be known of turns of this node before what stands between them and the end of what was read.
        highest = max((turn["seq"] for turn in doomed if turn["seq"] is not None), default=0)
        # It would go out behind the end if its session is not told yet, and keep the next one of that name.
        forget_kept(connection, repo, name)
        message = {"repo": repo, "session": name, "reason": reason}
        message["upto"] = max(0, min(highest, upto, read_to(connection)))
        # Not told to others: what the fleet has no use for any more, which this node removes once it has told them.
        stored = stored_in_fleet(connection, [turn["id"] for turn in doomed])
        for first in range(0, max(1, len(named)), MOST_UIDS):
            uids = named[first : first + MOST_UIDS]
            enqueue(connection, "end", message | {"uids": uids} | (stored if not first else {}), at)
    remove(connection, session, doomed, last, reason, at)


def remove(
    connection: sqlite_utils.Database,
    session: Mapping[str, Any],
    doomed: Iterable[Mapping[str, Any]],
    last: int,
    reason: str,
    at: float,
) -> None:
    """Deletes a session with the turns `doomed`, and notes that in the log; turns that are left are a new session.

    Applied pushes up to the audit id `last` that have no turn yet get none.
    """
    repo, name = session["repo"], session["session"]
    append_note(connection, rfc3339(at), repo, name, session["ref"], session["tip"], reason)
    connection.table("session_ends").insert({"repo": repo, "session": name, "last_attempt": last})
    connection.conn.executemany("DELETE FROM turns WHERE id = ?", [(turn["id"],) for turn in doomed])
    for table in ("sessions", "fleet_kept", "ends_begun"):
        connection.execute(f"DELETE FROM {table} WHERE repo = ? AND session = ?", [repo, name])
    if left := _turns(connection, repo, name):
        renumber(connection, repo, name)
        summarise(connection, repo, name)
        forget_session(connection, repo, name)
        if any(turn["client"] == UNKNOWN for turn in left):
            set_kept(connection, repo, name, True)


def end_elsewhere(
    connection: sqlite_utils.Database, message: Mapping[str, Any], seq: int, at: float
) -> list[dict[str, Any]]:
    """Applies what another node said of an end, at the place `seq` of the stream; returns the turns that ended.

    Their refs are noted, to be deleted.
    """
    repo, name, uids = message["repo"], message["session"], set(message["uids"])
    upto = min(message["upto"], seq - 1)
    turns = _turns(connection, repo, name)
    doomed = [turn for turn in turns if _is_upto(turn, upto) or turn["uid"] in uids]
    remember_ended(connection, [*uids, *(turn["uid"] for turn in doomed if turn["uid"])])
    if not doomed:
        # The end was made here, or its turns are gone already; whatever is left is a new session all the same.
        set_kept(connection, repo, name, any(turn["client"] == UNKNOWN for turn in turns))
        return []
    connection.conn.executemany(
        "INSERT OR REPLACE INTO fleet_leftovers VALUES (?, ?, ?, ?)",
        [(repo, name, turn["id"], turn["commit_id"]) for turn in doomed],
    )
    [session] = rows(connection, "SELECT * FROM sessions WHERE repo = ? AND session = ?", repo, name)
    reason = message["reason"]
    if message["node"] != node_name(connection):
        reason = f"{reason}, on node {message['node']}"
    last = max((turn["id"] for turn in doomed if not turn["away"]), default=0)
    remove(connection, session, doomed, last, reason, at)
    return doomed


def require_going_on(connection: sqlite_utils.Database, repo: str, session: str, *, may_end: bool) -> None:
    """Raises NotFound if there is no such session, and Conflict if its end has begun, unless `may_end`."""
    if not rows(connection, "SELECT 1 FROM sessions WHERE repo = ? AND session = ?", repo, session):
        raise NotFound(f"{repo} has no session {session}", hint=f"`sessions --repo {repo}` lists them")
    if not may_end and rows(connection, "SELECT 1 FROM ends_begun WHERE repo = ? AND session = ?", repo, session):
        raise Conflict(
            f"the session {session} of {repo} is being ended, and its refs may be gone",
            hint="what its agent pushes from now on is a new session, and can be kept",
        )


def set_kept(connection: sqlite_utils.Database, repo: str, session: str, kept: bool) -> None:
    """Exempts a session from retention, or ends that, inside the caller's transaction; it may not be here yet."""
    if kept:
        connection.execute("INSERT OR IGNORE INTO fleet_kept VALUES (?, ?)", [repo, session])
    else:
        connection.execute("DELETE FROM fleet_kept WHERE repo = ? AND session = ?", [repo, session])
    connection.execute("UPDATE sessions SET kept = ? WHERE repo = ? AND session = ?", [int(kept), repo, session])


def remember_ended(connection: sqlite_utils.Database, uids: Iterable[str]) -> None:
    """Has turns that ended not come back when their rows arrive, or arrive again."""
    connection.conn.executemany("INSERT OR IGNORE INTO fleet_ended VALUES (?)", [(uid,) for uid in uids])


def _turns(connection: sqlite_utils.Database, repo: str, session: str) -> list[dict[str, Any]]:
    query = "SELECT id, uid, seq, away, commit_id, client FROM turns WHERE repo = ? AND session = ?"
    return rows(connection, query, repo, session)


def _is_upto(turn: Mapping[str, Any], upto: int) -> bool:
    return turn["seq"] is not None and turn["seq"] <= upto
