"""What the audit log knows of the heads of itself that were published: which it holds, and which losses it accepts.

A log is named by the hash of its first event: nothing else stays the same for as long as the log goes on, and no two
logs share it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

from appliance.core.store.audit import AuditLog
from appliance.core.store.chain import append_event, newest_event
from appliance.core.store.database import Database, rows
from appliance.core.store.told import Head
from appliance.core.units import rfc3339

if TYPE_CHECKING:
    import sqlite_utils

_LOSS = re.compile(
    r"events of the log ([0-9a-f]{64}) after (\d{1,16}) and up to (\d{1,16}) \(([0-9a-f]{64})\), published until "
    r"(\S+), are not in this log"
)


class Span(NamedTuple):
    """A log by its name, and its newest event."""

    log: str
    newest: Head


class AcceptedLoss(NamedTuple):
    """Events of `log` above `after` and up to `last` that a note in the log says are lost.

    `until` is when the last of them was published, in RFC 3339 by the clock of the server that has it. What is
    published later under such an id is not covered.
    """

    log: str
    after: int
    last: Head
    until: str

    @property
    def text(self) -> str:
        """How a note says it; `find_losses` reads it."""
        return (
            f"events of the log {self.log} after {self.after} and up to {self.last.id} ({self.last.hash}), "
            f"published until {self.until}, are not in this log"
        )

    def covers(self, log: str, number: int, published: str) -> bool:
        """Whether the event `number` of `log`, whose hash was published at that time, is one of them."""
        return log == self.log and self.after < number <= self.last.id and published <= self.until


class LogHeads:
    """The audit log `audit` in `database`, as heads are compared with it. `clock` gives Unix seconds."""

    def __init__(self, database: Database, audit: AuditLog, clock: Callable[[], float]) -> None:
        self._database = database
        self._audit = audit
        self._clock = clock

    def span(self) -> Span | None:
        """The log's name and its newest event; None while it is empty. Raises StoreError."""
        with self._database.reading() as connection:
            first = rows(connection, "SELECT hash FROM audit_events ORDER BY id LIMIT 1")
            newest = newest_event(connection)
        return Span(str(first[0]["hash"]), newest) if first and newest else None

    def held(self, heads: Iterable[Head]) -> set[Head]:
        """Those of `heads` that the log holds. Raises StoreError."""
        known = "SELECT 1 FROM audit_events WHERE id = ? AND hash = ?"
        with self._database.reading() as connection:
            execute = connection.conn.execute
            return {head for head in heads if execute(known, (head.id, head.hash)).fetchone() is not None}

    def losses(self) -> list[AcceptedLoss]:
        """The losses that notes in the log accept, oldest first. Raises StoreError."""
        with self._database.reading() as connection:
            return find_losses(connection)

    def accept(self, losses: Iterable[AcceptedLoss], why: str) -> None:
        """Appends a note for each loss; `why` begins it. Raises StoreError."""
        with self._audit.appending() as connection:
            for loss in losses:
                note_loss(connection, loss, why, rfc3339(self._clock()))


def note_loss(connection: sqlite_utils.Database, loss: AcceptedLoss, why: str, at: str) -> None:
    """Appends the note of a loss inside the caller's transaction."""
    append_event(connection, kind="note", at=at, push="", repo="", ref="", reason=f"{why}: {loss.text}", client="")


def find_losses(connection: sqlite_utils.Database) -> list[AcceptedLoss]:
    """The losses that notes in the log accept, oldest first. No guest can make a note without a repository."""
    # By the index of repositories and refs, because the log may have millions of events.
    found = rows(
        connection, "SELECT reason FROM audit_events WHERE repo = '' AND ref = '' AND kind = 'note' ORDER BY id"
    )
    matches = (_LOSS.search(row["reason"] or "") for row in found)
    return [AcceptedLoss(m[1], int(m[2]), Head(int(m[3]), m[4]), m[5]) for m in matches if m]
