"""The hash chain of the audit log: how an event is hashed and appended, where the chain ends, whether it is intact.

The hashed form is the JSON object of all columns but `hash`, with sorted keys, no spaces and only ASCII. `hash` is its
SHA-256 in hex, and `prev` is the hash of the previous event (64 zeros for the first). Ids have no gaps, except before a
turn that was found in a mirror, because that turn keeps the id in its ref.

Events of version 1 were hashed before there were known guests: without `version`, `guest` and `digest`. Version 2
hashes all three, so an event cannot be passed off as one of the other version. No event of version 1 follows one of
version 2.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from appliance.core.store.database import rows
from appliance.core.store.told import Head

if TYPE_CHECKING:
    import sqlite_utils

GENESIS = "0" * 64
FOUND = "found"
"""The `push` of a turn that was found in a mirror; the log has no event of the push that created it."""
VERSION = 2
"""The version of the canonical form in which new events are hashed."""
_OF_VERSION_1 = (
    "id", "kind", "at", "attempt", "push", "repo", "session", "ref", "old", "new",
    "verdict", "outcome", "reason", "client", "prev",
)  # fmt: skip
NEW_IN_2 = ("guest", "digest")
"""The columns that are NULL in events of version 1, because nothing would reveal that somebody changed them."""
HASHED = {1: _OF_VERSION_1, 2: (*_OF_VERSION_1, "version", *NEW_IN_2)}
"""The columns that each version hashes. `guest` is who it was, if known. `digest` is the SHA-256 of an attachment."""
_STORED = (*HASHED[VERSION], "hash")
_INSERT = f"INSERT INTO audit_events ({', '.join(_STORED)}) VALUES ({', '.join('?' * len(_STORED))})"


def canonical_form(event: dict[str, Any]) -> bytes:
    """The bytes whose SHA-256 is the event's hash. Raises KeyError for a version that this code does not know."""
    hashed = {key: event[key] for key in HASHED[event["version"]]}
    return json.dumps(hashed, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def append_note(
    connection: sqlite_utils.Database, at: str, repo: str, session: str, ref: str, tip: str, reason: str
) -> None:
    """Adds a note, such as that a session was ended, inside the caller's transaction."""
    append_event(
        connection, kind="note", at=at, push="", repo=repo, session=session, ref=ref, old=tip, reason=reason, client=""
    )


def contains(connection: sqlite_utils.Database, head: Head) -> bool:
    return bool(rows(connection, "SELECT 1 FROM audit_events WHERE id = ? AND hash = ?", head.id, head.hash))


def newest_event(connection: sqlite_utils.Database) -> Head | None:
    newest = rows(connection, "SELECT id, hash FROM audit_events ORDER BY id DESC LIMIT 1")
    return Head(int(newest[0]["id"]), str(newest[0]["hash"])) if newest else None


def head_of(connection: sqlite_utils.Database) -> str:
    newest = newest_event(connection)
    return newest.hash if newest else GENESIS


def highest_id(connection: sqlite_utils.Database) -> int:
    """The id of the newest event ever written; SQLite remembers it even after the event is deleted."""
    counted = rows(connection, "SELECT seq FROM sqlite_sequence WHERE name = 'audit_events'")
    return int(counted[0]["seq"]) if counted else 0


def append_event(connection: sqlite_utils.Database, **columns: Any) -> int:
    """Adds one event inside the caller's transaction, so that no other event gets in after the head is read.

    Its id is the next one, unless `columns` contains an id.
    """
    event: dict[str, Any] = dict.fromkeys(_STORED)
    event |= {"id": highest_id(connection) + 1} | columns | {"prev": head_of(connection), "version": VERSION}
    event["hash"] = hashlib.sha256(canonical_form(event)).hexdigest()
    connection.execute(_INSERT, [event[name] for name in _STORED])
    return int(event["id"])


@dataclass(frozen=True)
class Verification:
    """Whether the chain is intact. `broken` is the id of the first event that breaks it, and `reason` says how."""

    events: int
    head: str
    broken: int | None = None
    reason: str | None = None


def verify_chain(
    events: Iterable[dict[str, Any]], after: Head, written: int, expected_head: str | None
) -> Verification:
    """Verifies the events that follow `after`. `written` is the id of the newest event ever written. Pure.

    With `expected_head`, one of them must have that hash.
    """
    (last_id, prev), count, version = after, 0, 1
    seen_head = expected_head in (None, GENESIS)
    for event in events:
        if event["id"] != last_id + 1 and event["push"] != FOUND:
            last_missing = event["id"] - 1
            more = f", and so are all events up to {last_missing}" if last_missing > last_id + 1 else ""
            return Verification(count, prev, last_id + 1, f"it is missing{more}")
        if event["prev"] != prev:
            reason = "it does not follow the previous event, or that event was changed"
            return Verification(count, prev, event["id"], reason)
        if event["version"] not in HASHED:
            return Verification(count, prev, event["id"], f"its form has the unknown version {event['version']!r}")
        if event["version"] < version:
            return Verification(count, prev, event["id"], "its form is older than that of the previous event")
        version = event["version"]
        if any(event[name] is not None for name in NEW_IN_2 if name not in HASHED[version]):
            return Verification(count, prev, event["id"], "it has columns that its form does not hash")
        if hashlib.sha256(canonical_form(event)).hexdigest() != event["hash"]:
            return Verification(count, prev, event["id"], "its content does not match its hash")
        prev, last_id, count = event["hash"], event["id"], count + 1
        seen_head = seen_head or prev == expected_head
    if written > last_id:
        return Verification(count, prev, last_id + 1, f"events up to {written} were written; this one is missing")
    if not seen_head:
        return Verification(count, prev, last_id + 1, f"the log no longer contains {expected_head}")
    return Verification(count, prev)
