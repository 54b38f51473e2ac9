"""What guests say about their turns beside the commits: notes, and attachments, whose files are on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from appliance.core.errors import Conflict, NotFound, TooLarge
from appliance.core.store.chain import append_event
from appliance.core.store.database import Database, rows
from appliance.core.units import format_size

if TYPE_CHECKING:
    import sqlite_utils

    from appliance.core.store.audit import AuditLog

MOST_ATTACHMENTS = 64
"""The most attachments of one turn."""
MOST_TURN_BYTES = 64 * 2**20
"""The most bytes of all attachments of one turn."""
_COLUMNS = "t.repo AS repo, d.turn_id AS turn_id, d.name AS name, d.size AS size, d.sha256 AS sha256"


@dataclass(frozen=True)
class AttachmentRow:
    """One attachment of a turn. Its bytes have the SHA-256 `sha256`, in hex."""

    repo: str
    turn_id: int
    name: str
    size: int
    sha256: str

    @property
    def path(self) -> str:
        """The path of its file below `Layout.attachments`."""
        return f"{self.repo}/{self.turn_id}/{self.sha256}"

    def document(self) -> dict[str, Any]:
        """As `session show --json` prints it."""
        return {"name": self.name, "size": self.size, "sha256": self.sha256}


class AttachedTurn(NamedTuple):
    """A turn that something is attached to, the time of the turn in RFC 3339, and the guest that recorded it."""

    id: int
    at: str
    guest: str | None


class TooMuchAttached(TooLarge):
    """One more attachment would exceed what a turn may have."""


class TurnDetailStore:
    """The notes and the rows of attachments in `database`. Every method raises StoreError."""

    def __init__(self, database: Database, audit: AuditLog) -> None:
        self._database = database
        self._audit = audit

    def of_session(self, repo: str, session: str) -> dict[int, dict[str, Any]]:
        """`notes` and `attachments` of each turn of a session that has any, by the turn's id."""
        of_turns = "JOIN turns t ON t.id = d.turn_id WHERE t.repo = ? AND t.session = ?"
        with self._database.reading() as connection:
            notes = rows(connection, f"SELECT d.* FROM turn_notes d {of_turns} ORDER BY d.key", repo, session)
            files = rows(
                connection, f"SELECT {_COLUMNS} FROM turn_attachments d {of_turns} ORDER BY d.name", repo, session
            )
        found: dict[int, dict[str, Any]] = {}
        for note in notes:
            found.setdefault(note["turn_id"], no_details())["notes"][note["key"]] = note["value"]
        for file in files:
            found.setdefault(file["turn_id"], no_details())["attachments"].append(AttachmentRow(**file).document())
        return found

    def turn_of(self, repo: str, session: str, commit: str) -> AttachedTurn | None:
        """The newest turn of a session with this commit that this node took."""
        with self._database.reading() as connection:
            found = rows(
                connection,
                """SELECT id, at, guest FROM turns WHERE repo = ? AND session = ? AND commit_id = ?
                   AND away = 0 ORDER BY id DESC LIMIT 1""",
                repo,
                session,
                commit,
            )
        return AttachedTurn(**found[0]) if found else None

    def attachments(self, turn_id: int) -> list[AttachmentRow]:
        """The attachments of a turn, by name."""
        with self._database.reading() as connection:
            return _attachments(connection, "d.turn_id = ?", turn_id)

    def all_attachments(self, repo: str | None = None) -> list[AttachmentRow]:
        """Every attachment, of one repository if it is given; also those of turns that other nodes took."""
        with self._database.reading() as connection:
            return _attachments(connection, "(?1 IS NULL OR t.repo = ?1)", repo)

    def recorded_attachments(self) -> list[AttachmentRow]:
        """Every attachment of a turn that this node took."""
        with self._database.reading() as connection:
            return _attachments(connection, "t.away = ?", 0)

    def attached_bytes(self) -> int:
        """The size of all attachments of turns that this node took, in bytes."""
        query = (
            "SELECT coalesce(sum(size), 0) AS n FROM turn_attachments a JOIN turns t ON t.id = a.turn_id AND t.away = 0"
        )
        with self._database.reading() as connection:
            [total] = rows(connection, query)
        return int(total["n"])

    def attach(self, row: AttachmentRow, session: str, commit: str, at: str, client: str, guest: str | None) -> bool:
        """Adds an attachment whose file is in place, and an event with its digest to the audit log, in one transaction.

        Returns False, and changes nothing, if the turn has it already. Raises Conflict if the turn has another one of
        this name, TooMuchAttached, and NotFound if the turn was ended meanwhile.
        """
        with self._audit.appending() as connection:
            present = {found.name: found for found in _attachments(connection, "d.turn_id = ?", row.turn_id)}
            if require_room(present, row.name, row.size, row.sha256):
                return False
            if not rows(connection, "SELECT 1 FROM turns WHERE id = ?", row.turn_id):
                raise NotFound("the turn was ended meanwhile")
            connection.table("turn_attachments").insert(
                {"turn_id": row.turn_id, "name": row.name, "size": row.size, "sha256": row.sha256}
            )
            append_event(
                connection,
                kind="note",
                at=at,
                push="",
                repo=row.repo,
                session=session,
                ref=f"refs/agents/{session}",
                new=commit,
                digest=row.sha256,
                guest=guest,
                client=client,
                reason=f"{row.name}, {row.size} bytes, was attached to turn {row.turn_id}",
            )
        return True

    def drop_orphans(self) -> None:
        """Removes the notes of pushes that failed, or whose turn was ended before it was recorded."""
        with self._database.writing() as connection:
            connection.execute(
                """DELETE FROM turn_notes WHERE NOT EXISTS (SELECT 1 FROM turns t WHERE t.id = turn_id) AND EXISTS (
                     SELECT 1 FROM audit_events a JOIN audit_events o ON o.attempt = a.id WHERE a.id = turn_id AND
                       (o.outcome = 'failed' OR EXISTS (SELECT 1 FROM session_ends e WHERE e.repo = a.repo
                          AND e.session = a.session AND e.last_attempt >= a.id)))"""
            )


def require_room(
    present: Mapping[str, AttachmentRow], name: str, size: int | None = None, sha256: str | None = None
) -> bool:
    """Whether a turn with the attachments `present` has this one already. `size` may not be known yet.

    Raises Conflict if one of that name has other bytes, and TooMuchAttached.
    """
    same = present.get(name)
    if same is not None and sha256 is not None:
        if same.sha256 == sha256:
            return True
        raise Conflict(f"this turn has another attachment {name}", hint="attach it under another name")
    if same is None and len(present) >= MOST_ATTACHMENTS:
        raise TooMuchAttached(f"this turn has {len(present)} attachments, no more are accepted")
    if same is None and sum(row.size for row in present.values()) + (size or 0) > MOST_TURN_BYTES:
        raise TooMuchAttached(f"the attachments of one turn may have {format_size(MOST_TURN_BYTES)} together")
    return False


def no_details() -> dict[str, Any]:
    """The details of a turn without any."""
    return {"notes": {}, "attachments": []}


def store_notes(connection: sqlite_utils.Database, attempts: Sequence[int], notes: Mapping[str, str]) -> None:
    """Adds the notes of a push to each of its attempts, inside the caller's transaction."""
    for attempt in attempts:
        for key, value in notes.items():
            connection.execute("INSERT INTO turn_notes VALUES (?, ?, ?)", [attempt, key, value])


def drop_notes(connection: sqlite_utils.Database, attempt: int) -> None:
    """Removes the notes of an attempt that failed, inside the caller's transaction."""
    connection.execute("DELETE FROM turn_notes WHERE turn_id = ?", [attempt])


def words_of_notes(connection: sqlite_utils.Database, turn_id: int) -> str:
    """The notes of a turn as text to be searched."""
    found = rows(connection, "SELECT key, value FROM turn_notes WHERE turn_id = ? ORDER BY key", turn_id)
    return "".join(f"\n{note['key']}={note['value']}" for note in found)


def _attachments(connection: sqlite_utils.Database, where: str, value: int | str | None) -> list[AttachmentRow]:
    found = rows(
        connection,
        f"""SELECT {_COLUMNS} FROM turn_attachments d JOIN turns t ON t.id = d.turn_id
            WHERE {where} ORDER BY d.turn_id, d.name""",
        value,
    )
    return [AttachmentRow(**row) for row in found]
