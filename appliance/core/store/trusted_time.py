"""Stores the newest time that retention has relied on."""

from __future__ import annotations

from datetime import UTC, datetime

from appliance.core.store.database import Database, rows


class TimeStore:
    """The row in `database`. Times are Unix seconds."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def newest(self) -> float | None:
        """The time that was last trusted, otherwise the newest time in the database; None if it has none."""
        with self._database.reading() as connection:
            if found := rows(connection, "SELECT at FROM trusted_time"):
                return float(found[0]["at"])
            refreshes = rows(connection, "SELECT started_at FROM refreshes ORDER BY id DESC LIMIT 1")
            events = rows(connection, "SELECT at FROM audit_events ORDER BY id DESC LIMIT 1")
        times = [float(row["started_at"]) for row in refreshes] + [timestamp(row["at"]) for row in events]
        return max(times, default=None)

    def trust(self, at: float) -> None:
        """Replaces the time that `newest` returns. Raises StoreError."""
        with self._database.writing() as connection:
            connection.execute("INSERT OR REPLACE INTO trusted_time (id, at) VALUES (1, ?)", [at])


def timestamp(text: str) -> float:
    """Converts a time in the database's format, RFC 3339 in UTC, to Unix seconds."""
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC).timestamp()
