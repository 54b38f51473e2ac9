"""The record of hydrations: one row each, kept for a bounded time and number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from appliance.core.models import Hydration
from appliance.core.store.database import Database, rows
from appliance.core.units import rfc3339

MOST_ROWS = 100_000
LONGEST = 7 * 86400.0
"""Seconds that a row is kept."""


class ActivityStore:
    """The rows in `database`. `clock` gives Unix seconds."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock

    def record(self, events: Sequence[tuple[float, Hydration]]) -> None:
        """Adds a batch of (when it ended, what) in one transaction, and drops what is too old or too much."""
        with self._database.writing() as connection:
            connection.table("hydrations").insert_all({"at": at, **asdict(event)} for at, event in events)
            connection.execute(
                "DELETE FROM hydrations WHERE at < ? OR id <= (SELECT max(id) FROM hydrations) - ?",
                [self._clock() - LONGEST, MOST_ROWS],
            )

    def newest(self, limit: int, *, repo: str | None = None) -> list[dict[str, Any]]:
        """Rows, newest first: the fields of Hydration with `id` and `at`."""
        with self._database.reading() as connection:
            found = rows(
                connection,
                "SELECT * FROM hydrations WHERE (?1 IS NULL OR repo = ?1) ORDER BY id DESC LIMIT ?2",
                repo,
                limit,
            )
        return [_document(row) for row in found]

    def after(self, last: int) -> list[dict[str, Any]]:
        """Rows with an id above `last`, oldest first, a thousand at most."""
        with self._database.reading() as connection:
            found = rows(connection, "SELECT * FROM hydrations WHERE id > ? ORDER BY id LIMIT 1000", last)
        return [_document(row) for row in found]

    def counts(self, since: float, width: float) -> list[dict[str, Any]]:
        """How many hydrations ended in each `width` seconds from `since` on: `{repo, slot, way, count}`."""
        with self._database.reading() as connection:
            return rows(
                connection,
                """SELECT repo, CAST((at - ?1) / ?2 AS INTEGER) AS slot, way, count(*) AS count FROM hydrations
                   WHERE at >= ?1 GROUP BY 1, 2, 3""",
                since,
                width,
            )


def _document(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"at": rfc3339(row["at"])}
