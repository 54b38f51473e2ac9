"""The audit log: append-only events, each chained by its hash to the previous one.

An *attempt* is one ref of one push with the verdict on it. An *outcome* says whether an accepted attempt was applied or
failed. A *note* says that a session was ended and why, that an operator accepted a loss, or that a commit is lost.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from appliance.core.errors import GitmirrorError
from appliance.core.store.chain import (
    FOUND,
    GENESIS,
    Verification,
    append_event,
    append_note,
    contains,
    head_of,
    highest_id,
    newest_event,
    verify_chain,
)
from appliance.core.store.cursors import LARGEST, Page, page_by_id
from appliance.core.store.database import Database, StoreError, rows
from appliance.core.store.told import Head, ToldHead
from appliance.core.store.turn_details import drop_notes, store_notes
from appliance.core.units import rfc3339

if TYPE_CHECKING:
    import sqlite_utils

_OF_ATTEMPT = ("push", "repo", "session", "ref", "old", "new", "client", "guest")
"""The columns that an outcome repeats."""
UNKNOWN = "unknown"
"""The `client` of a turn that was found in a mirror."""
_FOUND_REASON = "found in the mirror, not seen: its guest and the time of its push are unknown"


@dataclass(frozen=True)
class Attempt:
    """One ref that a guest tried to write; `old` and `new` are the ids that it sent, `guest` its name if known."""

    push: str
    repo: str
    ref: str
    session: str | None
    old: str | None
    new: str | None
    verdict: str
    reason: str | None
    client: str
    guest: str | None = None


@dataclass(frozen=True)
class OpenAttempt:
    """An accepted attempt whose outcome is not known yet."""

    id: int
    push: str
    repo: str
    ref: str
    old: str | None
    new: str | None


class TurnRef(NamedTuple):
    """The ref that keeps a turn's commit in a mirror; `id` is the id of the attempt that created it."""

    repo: str
    id: int
    commit: str


@dataclass(frozen=True)
class FoundTurn:
    """A turn that the log does not know, and the session that it is assigned to."""

    ref: TurnRef
    session: str


class LogBehind(GitmirrorError):
    """The log lacks events that were reported: its database is an older copy, or a new one."""

    def __init__(self, head: Head) -> None:
        known = f"event {head.id}, which was recorded" if head.id else "everything that was recorded"
        super().__init__(
            f"the audit log lacks {known}, so its database is an older one or a new one",
            hint="put the newest gitmirror.db back and restart; if there is none, `gitmirror.pyz audit accept-loss` "
            "allows pushes again",
        )


class AuditLog:
    """The log in `database`. `clock` gives Unix seconds."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock
        self._reported = ToldHead(database.path.with_name("audit-head"))

    def check(self) -> None:
        """Raises LogBehind if the log lacks the newest event that was reported, StoreError if it cannot be read.

        A database that is known to be damaged somewhere is an error too, because nobody knows what it lost.
        """
        if self._database.damage is not None:
            raise self._database.damage
        with self._database.reading() as connection:
            self._check(connection)

    def record_attempts(self, attempts: Sequence[Attempt], notes: Mapping[str, str] | None = None) -> list[int]:
        """Appends attempts in one transaction; returns their ids. Raises StoreError, and then none is logged.

        `notes` are those of the turns that the attempts become.
        """
        at = rfc3339(self._clock())
        with self.appending() as connection:
            ids = [append_event(connection, kind="attempt", at=at, **vars(attempt)) for attempt in attempts]
            store_notes(connection, ids, notes or {})
            return ids

    def record_outcomes(self, outcomes: Iterable[tuple[int, str, str | None]], push: str | None = None) -> set[int]:
        """Appends (attempt id, `applied` or `failed`, reason). An attempt that already has an outcome keeps it.

        Skips what is no attempt of `push`, if that is given: an older copy of the log, put back meanwhile, lacks the
        attempts since, and may have given their ids to others. Returns the ids of the others.
        """
        at, known = rfc3339(self._clock()), set()
        with self.appending() as connection:
            for attempt_id, outcome, reason in outcomes:
                found = rows(connection, "SELECT * FROM audit_events WHERE id = ? AND kind = 'attempt'", attempt_id)
                if not found or push not in (None, found[0]["push"]):
                    continue
                known.add(attempt_id)
                if rows(connection, "SELECT 1 FROM audit_events WHERE attempt = ?", attempt_id):
                    continue
                [attempt] = found
                copied = {key: attempt[key] for key in _OF_ATTEMPT}
                facts = {"attempt": attempt_id, "outcome": outcome, "reason": reason}
                append_event(connection, kind="outcome", at=at, **facts, **copied)
                if outcome == "failed":
                    drop_notes(connection, attempt_id)
        return known

    def unknown(self, turns: Iterable[TurnRef]) -> list[TurnRef]:
        """The `turns` whose accepted attempt the log lacks: the log is older than they are, or another node's."""
        known = """SELECT 1 FROM audit_events WHERE id = ? AND repo = ? AND new = ?
                   AND kind = 'attempt' AND verdict = 'accepted'"""
        with self._database.reading() as connection:
            execute = connection.conn.execute
            return [turn for turn in turns if execute(known, (turn.id, turn.repo, turn.commit)).fetchone() is None]

    def record_found(self, turns: Iterable[FoundTurn]) -> list[FoundTurn]:
        """Appends turns that were found in mirrors, each under its own id, in one transaction; returns those appended.

        Skips a turn whose id the log has assigned to another event meanwhile.
        """
        at = rfc3339(self._clock())
        with self.appending() as connection:
            last, taken = highest_id(connection), []
            for turn in sorted(turns, key=lambda turn: turn.ref.id):
                if turn.ref.id > last:
                    last = turn.ref.id
                    taken.append(turn)
            facts = {"at": at, "push": FOUND, "client": UNKNOWN, "reason": _FOUND_REASON}
            for turn in taken:
                append_event(connection, kind="attempt", id=turn.ref.id, verdict="accepted", **facts, **_named(turn))
            for turn in taken:
                append_event(
                    connection, kind="outcome", attempt=turn.ref.id, outcome="applied", **facts, **_named(turn)
                )
        return taken

    def accept_loss(self) -> bool:
        """Appends a note that accepts the loss of events; returns False if none are lost. Raises StoreError."""
        reported = self._reported.read()
        with self._database.writing() as connection:
            if reported is None or contains(connection, reported):
                return False
            reason = f"an operator accepted that events are lost, up to {reported.id} ({reported.hash}) or later"
            at = rfc3339(self._clock())
            append_event(connection, kind="note", at=at, push="", repo="", ref="", reason=reason, client="")
            head = newest_event(connection)
        if head is not None:
            self._reported.write(head)
        return True

    def note_losses(self, repo: str, lost: Iterable[tuple[str, str, str]], reason: str) -> bool:
        """Appends a note for each lost (ref, session, commit) that has none yet; returns whether it appended any.

        Raises StoreError.
        """
        noted = "SELECT 1 FROM audit_events WHERE kind = 'note' AND repo = ? AND ref = ? AND old = ? AND reason = ?"
        with self.appending() as connection:
            new = [each for each in lost if not rows(connection, noted, repo, each[0], each[2], reason)]
            for ref, session, commit in new:
                append_note(connection, rfc3339(self._clock()), repo, session, ref, commit, reason)
        return bool(new)

    def last_id(self) -> int:
        """The highest id ever assigned; 0 if none was."""
        with self._database.reading() as connection:
            return highest_id(connection)

    def open_attempts(self) -> list[OpenAttempt]:
        """Accepted attempts without an outcome, oldest first."""
        with self._database.reading() as connection:
            found = rows(
                connection,
                """SELECT id, push, repo, ref, old, new FROM audit_events a
                   WHERE kind = 'attempt' AND verdict = 'accepted'
                   AND NOT EXISTS (SELECT 1 FROM audit_events o WHERE o.attempt = a.id) ORDER BY id""",
            )
        return [OpenAttempt(**row) for row in found]

    def led_on(self, attempt: OpenAttempt) -> bool:
        """Whether a later applied push started from this attempt's commit, which proves that this one was applied."""
        later = """SELECT 1 FROM audit_events WHERE repo = ? AND ref = ? AND id > ?
                   AND kind = 'outcome' AND outcome = 'applied' AND old = ? LIMIT 1"""
        with self._database.reading() as connection:
            return bool(rows(connection, later, attempt.repo, attempt.ref, attempt.id, attempt.new))

    def entries(
        self,
        *,
        repo: str | None = None,
        session: str | None = None,
        verdict: str | None = None,
        since: str | None = None,
        guest: str | None = None,
        above: int = 0,
        below: int = LARGEST,
        limit: int = -1,
    ) -> list[dict[str, Any]]:
        """One dictionary for each attempted ref, newest first, with the keys that the contract names.

        `since` is a time in the log's own format, RFC 3339 in UTC. Only ids between `above` and `below` are returned.
        """
        with self._database.reading() as connection:
            found = rows(
                connection,
                """SELECT a.id, a.at, a.repo, a.session, a.ref, a.old, a.new, a.verdict,
                          CASE WHEN a.verdict = 'accepted' THEN coalesce(o.outcome, 'pending') END AS outcome,
                          coalesce((SELECT n.reason FROM audit_events n WHERE n.kind = 'note' AND n.repo = a.repo AND
                            n.ref = 'refs/gitmirror/turns/' || a.id), o.reason, a.reason) AS reason, a.client,
                          a.hash, a.guest
                   FROM audit_events a LEFT JOIN audit_events o ON o.attempt = a.id
                   WHERE a.kind = 'attempt' AND (?1 IS NULL OR a.repo = ?1) AND (?2 IS NULL OR a.session = ?2)
                   AND (?3 IS NULL OR a.verdict = ?3) AND (?4 IS NULL OR a.at >= ?4) AND a.id > ?5
                   AND a.id < ?6 AND (?8 IS NULL OR a.guest = ?8) ORDER BY a.id DESC LIMIT ?7""",
                repo,
                session,
                verdict,
                since,
                above,
                below,
                limit,
                guest,
            )
        return found

    def page(
        self,
        *,
        repo: str | None = None,
        session: str | None = None,
        verdict: str | None = None,
        since: str | None = None,
        guest: str | None = None,
        after: str | None = None,
        limit: int | None = None,
    ) -> Page:
        """One page of `entries`. Raises UsageError for a cursor of another list."""

        def read(below: int, most: int) -> list[dict[str, Any]]:
            wanted: dict[str, Any] = {"session": session, "verdict": verdict, "since": since, "guest": guest}
            return self.entries(repo=repo, **wanted, below=below, limit=most)

        return page_by_id("audit", read, after, limit)

    def events(self, since: str | None = None, above: int = 0) -> Iterator[dict[str, Any]]:
        """Every event in order (from `since` on, after that id) with its hash, in pages, as the log may be large."""
        last = above
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
        """The hash of the newest event; 64 zeros if the log is empty."""
        with self._database.reading() as connection:
            return head_of(connection)

    def verify(self, expected_head: str | None = None, *, after: Head | None = None) -> Verification:
        """Verifies the whole chain, or the events that follow `after`, up to which it was verified before.

        With `expected_head`, that hash must be in it, which also reveals a cut-off end.
        """
        with self._database.reading() as connection:
            # Read before the walk, so that events appended meanwhile do not look like a gap.
            written = highest_id(connection)
        start = after or Head(0, GENESIS)
        found = verify_chain(self.events(above=start.id), start, written, expected_head)
        if found.broken is None:
            try:
                self.check()
            except LogBehind as behind:
                return replace(found, broken=written + 1, reason=f"{behind.message}; {behind.hint}")
        return found

    def _check(self, connection: sqlite_utils.Database) -> None:
        reported = self._reported.read()
        if reported is not None and not contains(connection, reported):
            raise LogBehind(reported)

    @contextlib.contextmanager
    def appending(self) -> Iterator[sqlite_utils.Database]:
        """A transaction whose last event becomes the reported head when it commits.

        If the log lacks the event that was reported before, or nobody can read which, the reported head stays: only an
        operator may replace it.
        """
        with self._database.writing() as connection:
            whole = False
            with contextlib.suppress(LogBehind, StoreError):
                self._check(connection)
                whole = True
            yield connection
            head = newest_event(connection)
        if head is not None and whole:
            self._reported.note(head)


def _named(turn: FoundTurn) -> dict[str, str | None]:
    ref = f"refs/agents/{turn.session}"
    return {"repo": turn.ref.repo, "session": turn.session, "ref": ref, "old": None, "new": turn.ref.commit}
