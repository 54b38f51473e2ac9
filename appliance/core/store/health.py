"""The health of each mirror, and the history of its refreshes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from appliance.core.models import Health, RefreshOutcome
from appliance.core.store.cursors import LARGEST, Page, page_by_id
from appliance.core.store.database import Database, rows
from appliance.core.units import rfc3339

REFRESHES_KEPT = 500
"""Rows of history stored for each repository: over eight hours at one refresh a minute."""

_COLUMNS = frozenset(
    {
        "tip", "head", "verified_at", "checked_at", "last_error", "error_kind", "retry_at", "failures", "cloned",
        "refs", "size", "sessions", "next_due", "maintained_at", "damage", "inspected_at", "verified_whole_at",
    }
)  # fmt: skip


class HealthStore:
    """The health rows and refresh history in `database`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def all(self) -> dict[int, Health]:
        """Health by repository id."""
        with self._database.reading() as connection:
            return {row["repo_id"]: _health(row) for row in rows(connection, "SELECT * FROM health")}

    def get(self, repo_id: int) -> Health:
        """One repository's health; an empty Health if the id no longer exists."""
        with self._database.reading() as connection:
            found = rows(connection, "SELECT * FROM health WHERE repo_id = ?", repo_id)
        return _health(found[0]) if found else Health()

    def update(self, repo_id: int, **columns: Any) -> None:
        """Sets columns (names of Health); ignores a repository that was removed meanwhile."""
        unknown = columns.keys() - _COLUMNS
        if unknown:
            raise ValueError(f"no columns of health: {sorted(unknown)}")
        assignments = ", ".join(f"{name} = ?" for name in columns)
        with self._database.writing() as connection:
            connection.execute(f"UPDATE health SET {assignments} WHERE repo_id = ?", [*columns.values(), repo_id])

    def record_refresh(self, repo_id: int, outcome: RefreshOutcome, **columns: Any) -> None:
        """Adds a row of history, sets health columns and deletes old rows, in one transaction."""
        self.record_refreshes([(repo_id, outcome, columns)])

    def record_refreshes(self, refreshes: Sequence[tuple[int, RefreshOutcome, Mapping[str, Any]]]) -> None:
        """The same for many refreshes, oldest first. One transaction needs only one sync of the disk for all."""
        latest: dict[int, dict[str, Any]] = {}
        for repo_id, _, columns in refreshes:
            latest.setdefault(repo_id, {}).update(columns)
        with self._database.writing() as connection:
            connection.conn.executemany(
                """INSERT INTO refreshes (repo, started_at, duration, result, moved, error, kind)
                   VALUES (?, ?, ?, ?, ?, ?, ?)""",
                [_row_of(outcome) for _, outcome, _ in refreshes],
            )
            connection.conn.executemany(
                """DELETE FROM refreshes WHERE repo = ?1 AND id <=
                   (SELECT id FROM refreshes WHERE repo = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)""",
                [(repo, REFRESHES_KEPT) for repo in dict.fromkeys(outcome.repo for _, outcome, _ in refreshes)],
            )
            for repo_id, columns in latest.items():
                assignments = ", ".join(f"{name} = ?" for name in columns)
                connection.execute(f"UPDATE health SET {assignments} WHERE repo_id = ?", [*columns.values(), repo_id])

    def refreshes(self, repo: str | None = None, limit: int = 100) -> list[dict[str, Any]]:
        """History, newest first: `{id, repo, started_at, duration, result, moved, error, kind}`."""
        return self._refreshes_below(LARGEST, limit, repo)

    def refreshes_page(self, repo: str | None = None, *, after: str | None = None, limit: int | None = None) -> Page:
        """One page of what `refreshes` returns. Raises UsageError for a cursor of another list."""
        return page_by_id("refreshes", lambda below, most: self._refreshes_below(below, most, repo), after, limit)

    def _refreshes_below(self, below: int, most: int, repo: str | None) -> list[dict[str, Any]]:
        with self._database.reading() as connection:
            found = rows(
                connection,
                """SELECT * FROM refreshes WHERE (?1 IS NULL OR repo = ?1) AND id < ?2
                   ORDER BY id DESC LIMIT ?3""",
                repo,
                below,
                most,
            )
        return [row | {"started_at": rfc3339(row["started_at"]), "moved": json.loads(row["moved"])} for row in found]

    def recent(self, repo: str, limit: int) -> list[tuple[float, float, str]]:
        """The last refreshes of one repository, oldest first: (start in Unix seconds, duration in seconds, result)."""
        with self._database.reading() as connection:
            found = rows(
                connection,
                "SELECT started_at, duration, result FROM refreshes WHERE repo = ? ORDER BY id DESC LIMIT ?",
                repo,
                limit,
            )
        return [(row["started_at"], row["duration"], row["result"]) for row in reversed(found)]

    def anchor_times(self, repo_id: int) -> dict[str, float]:
        """When each anchor ref of a mirror was first seen, in Unix seconds."""
        with self._database.reading() as connection:
            found = rows(connection, "SELECT ref, at FROM anchors WHERE repo_id = ?", repo_id)
        return {row["ref"]: row["at"] for row in found}

    def set_anchor_times(self, repo_id: int, times: dict[str, float]) -> None:
        """Replaces the times that `anchor_times` returns."""
        with self._database.writing() as connection:
            connection.execute("DELETE FROM anchors WHERE repo_id = ?", [repo_id])
            connection.table("anchors").insert_all(
                {"repo_id": repo_id, "ref": ref, "at": at} for ref, at in times.items()
            )


def _row_of(outcome: RefreshOutcome) -> tuple[Any, ...]:
    moved = json.dumps([change.document() for change in outcome.moved])
    facts = (outcome.repo, outcome.started_at, outcome.duration, outcome.result)
    return (*facts, moved, outcome.error, outcome.kind)


def _health(row: dict[str, Any]) -> Health:
    return Health(**{name: row[name] for name in _COLUMNS} | {"cloned": bool(row["cloned"])})
