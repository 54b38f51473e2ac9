"""The record of hydrations: one row for each, bounded in age and number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, fields
from typing import Any

from appliance.core.models import Hydration
from appliance.core.store.cursors import LARGEST, Page, page_by_id
from appliance.core.store.database import Database, rows
from appliance.core.units import rfc3339

MOST_ROWS = 100_000
LONGEST = 7 * 86400.0
"""The age in seconds at which a row is deleted."""


_COLUMNS = ("at", *(field.name for field in fields(Hydration)))
_INSERT = f"INSERT INTO hydrations ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' for _ in _COLUMNS)})"


class ActivityStore:
    """The hydrations in `database`. `clock` gives Unix seconds."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock

    def record(self, events: Sequence[tuple[float, Hydration]]) -> None:
        """Adds a batch of (end in Unix seconds, hydration) in one transaction, and deletes old and surplus rows."""
        with self._database.writing() as connection:
            # Plain sqlite3, because sqlite-utils reads the schema first, which takes most of the time for one row.
            connection.conn.executemany(_INSERT, [(at, *astuple(event)) for at, event in events])
            connection.execute("DELETE FROM hydrations WHERE id <= (SELECT max(id) FROM hydrations) - ?", [MOST_ROWS])
            # Check only the oldest rows, a few more than were added: a scan of the whole table takes milliseconds.
            connection.execute(
                """DELETE FROM hydrations WHERE id IN
                   (SELECT id FROM hydrations ORDER BY id LIMIT ?) AND at < ?""",
                [len(events) + 100, self._clock() - LONGEST],
            )

    def newest(self, limit: int, *, repo: str | None = None, guest: str | None = None) -> list[dict[str, Any]]:
        """At most `limit` rows, newest first: the fields of Hydration with `id` and `at`."""
        return self._below(LARGEST, limit, repo, guest)

    def page(
        self,
        repo: str | None = None,
        *,
        guest: str | None = None,
        after: str | None = None,
        limit: int | None = None,
    ) -> Page:
        """One page of what `newest` returns. Raises UsageError for a cursor of another list."""
        return page_by_id("activity", lambda below, most: self._below(below, most, repo, guest), after, limit)

    def _below(self, below: int, most: int, repo: str | None, guest: str | None) -> list[dict[str, Any]]:
        with self._database.reading() as connection:
            found = rows(
                connection,
                """SELECT * FROM hydrations WHERE (?1 IS NULL OR repo = ?1) AND id < ?2
                   AND (?4 IS NULL OR guest = ?4) ORDER BY id DESC LIMIT ?3""",
                repo,
                below,
                most,
                guest,
            )
        return [_document(row) for row in found]

    def last_use(self) -> dict[str, float]:
        """When the last hydration of each repository ended, in Unix seconds, as far back as there are rows."""
        with self._database.reading() as connection:
            found = rows(connection, "SELECT repo, max(at) AS at FROM hydrations GROUP BY repo")
        return {row["repo"]: row["at"] for row in found}

    def after(self, last: int) -> list[dict[str, Any]]:
        """Rows with an id above `last`, oldest first, at most a thousand."""
        with self._database.reading() as connection:
            found = rows(connection, "SELECT * FROM hydrations WHERE id > ? ORDER BY id LIMIT 1000", last)
        return [_document(row) for row in found]

    def since(self, at: float, last: int, most: int) -> list[dict[str, Any]]:
        """The rows since Unix second `at` with an id above `last`, oldest first; of more than `most`, the newest."""
        with self._database.reading() as connection:
            # By the ids, because no index has the times: only the newest rows are looked at.
            found = rows(
                connection,
                """SELECT * FROM hydrations WHERE at >= ?1
                   AND id > max(?2, (SELECT coalesce(max(id), 0) FROM hydrations) - ?3) ORDER BY id""",
                at,
                last,
                most,
            )
        return [_document(row) for row in found]

    def counts(self, since: float, width: float) -> list[dict[str, Any]]:
        """How many were completed in each slot of `width` seconds after `since`: `{repo, slot, way, count}`."""
        with self._database.reading() as connection:
            return rows(
                connection,
                """SELECT repo, CAST((at - ?1) / ?2 AS INTEGER) AS slot, way, count(*) AS count FROM hydrations
                   WHERE at >= ?1 AND outcome = 'complete' GROUP BY 1, 2, 3""",
                since,
                width,
            )


def _document(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"at": rfc3339(row["at"])}
