"""The audit log: append-only events, each chained by its hash to the one before.

An *attempt* is one ref of one push with the verdict of the guard; an *outcome* says what really became of an
accepted attempt; a *note* says that a session was ended, and why. The canonical form that is hashed is the JSON object
of all columns but `hash`, keys sorted, no spaces, ASCII only; `hash` is its SHA-256 in hex and `prev` the hash of the
event before (64 zeros for the first).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import sqlite_utils

from appliance.core.store.database import Database, rows
from appliance.core.units import rfc3339

GENESIS = "0" * 64
HASHED = (
    "id", "kind", "at", "attempt", "push", "repo", "session", "ref", "old", "new",
    "verdict", "outcome", "reason", "client", "prev",
)  # fmt: skip


@dataclass(frozen=True)
class Attempt:
    """One ref that a guest tried to write. `old` and `new` are object ids as the guest sent them."""

    push: str
    repo: str
    ref: str
    session: str | None
    old: str | None
    new: str | None
    verdict: str
    reason: str | None
    client: str


@dataclass(frozen=True)
class OpenAttempt:
    """An accepted attempt whose outcome is not known yet."""

    id: int
    push: str
    repo: str
    ref: str
    old: str | None
    new: str | None


@dataclass(frozen=True)
class Verification:
    """Whether the chain holds. `broken` is the id of the first event that does not, and `reason` how."""

    events: int
    head: str
    broken: int | None = None
    reason: str | None = None


def canonical_form(event: dict[str, Any]) -> bytes:
    """The bytes whose SHA-256 is the event's hash."""
    hashed = {key: event[key] for key in HASHED}
    return json.dumps(hashed, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


class AuditLog:
    """The log in `database`. `clock` gives Unix seconds."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock

    def record_attempts(self, attempts: Sequence[Attempt]) -> list[int]:
        """Appends attempts in one transaction; returns their ids. Raises StoreError, then none is logged."""
        at = rfc3339(self._clock())
        with self._database.writing() as connection:
            return [
                _append(
                    connection,
                    kind="attempt",
                    at=at,
                    push=attempt.push,
                    repo=attempt.repo,
                    session=attempt.session,
                    ref=attempt.ref,
                    old=attempt.old,
                    new=attempt.new,
                    verdict=attempt.verdict,
                    reason=attempt.reason,
                    client=attempt.client,
                )
                for attempt in attempts
            ]

    def record_outcomes(self, outcomes: Iterable[tuple[int, str, str | None]]) -> None:
        """Appends (attempt id, `applied` or `failed`, reason). An attempt that has one already keeps it."""
        at = rfc3339(self._clock())
        with self._database.writing() as connection:
            for attempt_id, outcome, reason in outcomes:
                if rows(connection, "SELECT 1 FROM audit_events WHERE attempt = ?", attempt_id):
                    continue
                [attempt] = rows(connection, "SELECT * FROM audit_events WHERE id = ?", attempt_id)
                copied = {key: attempt[key] for key in ("push", "repo", "session", "ref", "old", "new", "client")}
                _append(
                    connection,
                    kind="outcome",
                    at=at,
                    attempt=attempt_id,
                    outcome=outcome,
                    reason=reason,
                    **copied,
                )

    def open_attempts(self) -> list[OpenAttempt]:
        """Accepted attempts with no outcome, oldest first."""
        with self._database.reading() as connection:
            found = rows(
                connection,
                """SELECT id, push, repo, ref, old, new FROM audit_events a
                   WHERE kind = 'attempt' AND verdict = 'accepted'
                   AND NOT EXISTS (SELECT 1 FROM audit_events o WHERE o.attempt = a.id) ORDER BY id""",
            )
        return [OpenAttempt(**row) for row in found]

    def led_on(self, attempt: OpenAttempt) -> bool:
        """Whether a later push that was applied started from this attempt's commit: then this one was applied too."""
        with self._database.reading() as connection:
            return bool(
                rows(
                    connection,
                    """SELECT 1 FROM audit_events WHERE repo = ? AND ref = ? AND id > ?
                       AND kind = 'outcome' AND outcome = 'applied' AND old = ? LIMIT 1""",
                    attempt.repo,
                    attempt.ref,
                    attempt.id,
                    attempt.new,
                )
            )

    def entries(
        self,
        *,
        repo: str | None = None,
        session: str | None = None,
        verdict: str | None = None,
        since: str | None = None,
        above: int = 0,
        limit: int = -1,
    ) -> list[dict[str, Any]]:
        """One dictionary for each attempted ref, newest first, with the keys that the contract names.

        `since` is a time as the log has it, RFC 3339 in UTC; `above` leaves out ids up to it.
        """
        with self._database.reading() as connection:
            found = rows(
                connection,
                """SELECT a.id, a.at, a.repo, a.session, a.ref, a.old, a.new, a.verdict,
                          CASE WHEN a.verdict = 'accepted' THEN coalesce(o.outcome, 'pending') END AS outcome,
                          coalesce(o.reason, a.reason) AS reason, a.client, a.hash
                   FROM audit_events a LEFT JOIN audit_events o ON o.attempt = a.id
                   WHERE a.kind = 'attempt' AND (?1 IS NULL OR a.repo = ?1) AND (?2 IS NULL OR a.session = ?2)
                   AND (?3 IS NULL OR a.verdict = ?3) AND (?4 IS NULL OR a.at >= ?4) AND a.id > ?5
                   ORDER BY a.id DESC LIMIT ?6""",
                repo,
                session,
                verdict,
                since,
                above,
                limit,
            )
        return found

    def events(self, since: str | None = None) -> Iterator[dict[str, Any]]:
        """Every event in order (from `since` on), as it is hashed, with its hash. In pages: the log may be large."""
        last = 0
        while True:
            with self._database.reading() as connection:
                page = rows(
                    connection,
                    "SELECT * FROM audit_events WHERE id > ?1 AND (?2 IS NULL OR at >= ?2) ORDER BY id LIMIT 1000",
                    last,
                    since,
                )
            if not page:
                return
            yield from page
            last = page[-1]["id"]

    def head(self) -> str:
        """The hash of the newest event; 64 zeros when there is none."""
        with self._database.reading() as connection:
            return _head(connection)

    def verify(self, expected_head: str | None = None) -> Verification:
        """Walks the whole chain. With `expected_head`, that hash must be in it: a cut-off end is then seen too."""
        with self._database.reading() as connection:
            # Before the walk: what is appended meanwhile is no gap.
            written = _written(connection)
        prev, count, seen_head, last_id = GENESIS, 0, expected_head in (None, GENESIS), 0
        for event in self.events():
            if event["id"] != last_id + 1:
                return Verification(count, prev, last_id + 1, f"it is gone, and with it all up to {event['id'] - 1}")
            if event["prev"] != prev:
                return Verification(count, prev, event["id"], "it does not follow on the event before, or that changed")
            if hashlib.sha256(canonical_form(event)).hexdigest() != event["hash"]:
                return Verification(count, prev, event["id"], "its content does not match its hash")
            prev, last_id, count = event["hash"], event["id"], count + 1
            seen_head = seen_head or prev == expected_head
        if written > last_id:
            return Verification(count, prev, last_id + 1, f"events up to {written} were written, this one is gone")
        if not seen_head:
            return Verification(count, prev, last_id + 1, f"the log no longer contains {expected_head}")
        return Verification(count, prev)


def append_note(
    connection: sqlite_utils.Database, at: str, repo: str, session: str, ref: str, tip: str, reason: str
) -> None:
    """Adds a note, such as that a session was ended, inside the caller's transaction."""
    _append(
        connection, kind="note", at=at, push="", repo=repo, session=session, ref=ref, old=tip, reason=reason, client=""
    )


def _head(connection: sqlite_utils.Database) -> str:
    newest = rows(connection, "SELECT hash FROM audit_events ORDER BY id DESC LIMIT 1")
    return str(newest[0]["hash"]) if newest else GENESIS


def _written(connection: sqlite_utils.Database) -> int:
    """The id of the newest event ever written; SQLite remembers it when the event is gone. Ids have no gaps."""
    counted = rows(connection, "SELECT seq FROM sqlite_sequence WHERE name = 'audit_events'")
    return int(counted[0]["seq"]) if counted else 0


def _append(connection: sqlite_utils.Database, **columns: Any) -> int:
    """Adds one event inside the caller's transaction, so that nobody comes between reading the head and this."""
    event: dict[str, Any] = dict.fromkeys(HASHED)
    event |= columns | {"id": _written(connection) + 1, "prev": _head(connection)}
    event["hash"] = hashlib.sha256(canonical_form(event)).hexdigest()
    connection.table("audit_events").insert(event)
    return int(event["id"])
