"""The last alert sent about each unhealthy repository, so that a restart neither repeats nor loses an alert."""

from __future__ import annotations

from typing import Any

from appliance.core.store.database import Database, rows


class AlertStore:
    """What was last reported about each unhealthy repository, in `database`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def all(self) -> dict[int, dict[str, Any]]:
        """`{state, kind, since}` by repository id; `since` in Unix seconds."""
        with self._database.reading() as connection:
            found = rows(connection, "SELECT repo_id, state, kind, since FROM alerts")
        return {row.pop("repo_id"): row for row in found}

    def told(self, repo_id: int, state: str, kind: str | None, since: float) -> None:
        """Records that the repository was reported to be in `state`; ignores one that was removed meanwhile."""
        with self._database.writing() as connection:
            connection.execute(
                """INSERT OR REPLACE INTO alerts (repo_id, state, kind, since)
                   SELECT id, ?, ?, ? FROM repos WHERE id = ?""",
                [state, kind, since, repo_id],
            )

    def settled(self, repo_id: int) -> None:
        """Deletes the row: the repository was reported healthy again, or nobody needs to hear about it any more."""
        with self._database.writing() as connection:
            connection.execute("DELETE FROM alerts WHERE repo_id = ?", [repo_id])
