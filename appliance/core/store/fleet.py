"""What a node of a fleet must remember: how far it has read the streams, and what waits to go out."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from appliance.core.store.database import Database, rows

if TYPE_CHECKING:
    import sqlite_utils


@dataclass(frozen=True)
class Outgoing:
    """One message that waits to go out, oldest first. `kind` says who sends it."""

    id: int
    kind: str
    document: dict[str, Any]


class FleetStore:
    """The fleet's state and outbox in `database`. `clock` gives Unix seconds."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self.database = database
        self._clock = clock

    def get(self, key: str) -> str | None:
        """A value of the node's fleet state, or None."""
        with self.database.reading() as connection:
            found = rows(connection, "SELECT value FROM fleet_state WHERE key = ?", key)
        return str(found[0]["value"]) if found else None

    def set(self, key: str, value: str) -> None:
        """Stores a value of the node's fleet state."""
        with self.database.writing() as connection:
            set_state(connection, key, value)

    def queue(self, kind: str, document: dict[str, Any]) -> None:
        """Adds a message that goes out when the fleet can be reached."""
        with self.database.writing() as connection:
            enqueue(connection, kind, document, self._clock())

    def waiting(self, *kinds: str, after: int = 0, limit: int = 1000) -> list[Outgoing]:
        """The oldest messages of these kinds that wait, behind the one with the id `after`."""
        marks = ", ".join("?" * len(kinds))
        with self.database.reading() as connection:
            found = rows(
                connection,
                f"SELECT id, kind, document FROM fleet_outbox WHERE kind IN ({marks}) AND id > ? ORDER BY id LIMIT ?",
                *kinds,
                after,
                limit,
            )
        return [Outgoing(row["id"], row["kind"], json.loads(row["document"])) for row in found]

    def sent(self, *ids: int) -> None:
        """Removes messages that went out."""
        with self.database.writing() as connection:
            for each in ids:
                connection.execute("DELETE FROM fleet_outbox WHERE id = ?", [each])

    def count_waiting(self) -> dict[tuple[str, str], int]:
        """How many messages wait, by kind and repository, which is empty for those that name none."""
        repo = "coalesce(json_extract(document, '$.repo'), '')"
        with self.database.reading() as connection:
            found = rows(connection, f"SELECT kind, {repo} AS repo, count(*) AS n FROM fleet_outbox GROUP BY 1, 2")
        return {(row["kind"], row["repo"]): int(row["n"]) for row in found}


def set_state(connection: sqlite_utils.Database, key: str, value: str) -> None:
    """Stores a value of the fleet state inside the caller's transaction."""
    connection.execute(
        "INSERT INTO fleet_state (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        [key, value],
    )


def enqueue(connection: sqlite_utils.Database, kind: str, document: dict[str, Any], at: float) -> None:
    """Adds a message to the outbox inside the caller's transaction."""
    connection.execute(
        "INSERT INTO fleet_outbox (kind, document, created_at) VALUES (?, ?, ?)", [kind, json.dumps(document), at]
    )


def forget_kept(connection: sqlite_utils.Database, repo: str, session: str) -> None:
    """Removes what waits to go out about whether a session is kept, inside the caller's transaction.

    What is said next of the session says it anew. Of a private repository nothing goes out, however long it waits.
    """
    connection.execute(
        """DELETE FROM fleet_outbox WHERE kind = 'kept' AND json_extract(document, '$.repo') = ?
           AND json_extract(document, '$.session') = ?""",
        [repo, session],
    )


def enqueue_kept(connection: sqlite_utils.Database, repo: str, session: str, kept: bool, at: float) -> None:
    """Adds to the outbox whether a session is kept, in place of what waits of that, inside the caller's transaction."""
    forget_kept(connection, repo, session)
    enqueue(connection, "kept", {"repo": repo, "session": session, "kept": kept}, at)
