"""Repositories that `[[allow]]` brought: when each was last used, and how one ends without leaving anything behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from appliance.core.models import Repo
from appliance.core.store.database import Database, rows
from appliance.core.store.registry import Registry, Wanted

if TYPE_CHECKING:
    import sqlite_utils

_LEASED = "SELECT max(coalesce(released_at, expires_at)) AS at FROM disk_leases WHERE repo = ?"
_HELD = """SELECT 1 FROM sessions WHERE repo = ?1 UNION ALL SELECT 1 FROM turns WHERE repo = ?1
    UNION ALL SELECT 1 FROM audit_events a WHERE repo = ?1 AND kind = 'attempt' AND verdict = 'accepted'
    AND NOT EXISTS (SELECT 1 FROM audit_events o WHERE o.attempt = a.id)
    UNION ALL SELECT 1 FROM guest_repos WHERE repo_id = ?2
    UNION ALL SELECT 1 FROM read_tokens WHERE repo_id = ?2 AND revoked_at IS NULL AND expires_at > ?3 LIMIT 1"""


@dataclass(frozen=True)
class Use:
    """The use of one repository. `used_at` is in Unix seconds, `expire_after` in seconds without use."""

    used_at: float
    expire_after: float


class AllowedRepoStore:
    """These repositories in `database`. `clock` gives Unix seconds. Every method raises StoreError."""

    def __init__(self, database: Database, registry: Registry, clock: Callable[[], float]) -> None:
        self._database = database
        self._registry = registry
        self._clock = clock

    def add(self, wanted: Wanted, expire_after: float) -> Repo | None:
        """Registers a repository, unless its name is taken. Returns None then, whatever the name is taken by."""
        with self._database.writing() as connection:
            if rows(connection, "SELECT 1 FROM repos WHERE name = ?", wanted.name):
                return None
            repo = self._registry.insert(connection, wanted, "cli")
            connection.execute("INSERT INTO allowed_repos VALUES (?, ?, ?)", [repo.id, expire_after, self._clock()])
        return self._registry.get(wanted.name)

    def uses(self) -> dict[int, Use]:
        """The use of each repository, by id."""
        with self._database.reading() as connection:
            found = rows(connection, "SELECT * FROM allowed_repos")
        return {row["repo_id"]: Use(row["used_at"], row["expire_after"]) for row in found}

    def record(self, used: Mapping[int, float]) -> None:
        """Stores when repositories were last used, by id."""
        with self._database.writing() as connection:
            connection.conn.executemany(
                "UPDATE allowed_repos SET used_at = ? WHERE repo_id = ?",
                [(at, repo_id) for repo_id, at in used.items()],
            )

    def leased_until(self, repo: Repo) -> float:
        """When the last lease of a disk of this repository ends or ended, in Unix seconds; 0 without a lease."""
        with self._database.reading() as connection:
            [row] = rows(connection, _LEASED, repo.name)
        return row["at"] or 0.0

    def is_held(self, repo: Repo) -> bool:
        """Whether something keeps the repository here.

        That is a session, a turn, an accepted push whose outcome is not known, a grant to a known guest or a read
        token.
        """
        with self._database.reading() as connection:
            return self._is_held(connection, repo)

    def _is_held(self, connection: sqlite_utils.Database, repo: Repo) -> bool:
        return bool(rows(connection, _HELD, repo.name, repo.id, self._clock()))

    def end(self, repo: Repo) -> bool:
        """Unregisters a repository and notes that its files go. Returns whether it did.

        False if it is not allowed any more but the operator's, if `is_held`, or if a disk of it is leased.
        """
        with self._database.writing() as connection:
            if not rows(connection, "SELECT 1 FROM allowed_repos WHERE repo_id = ?", repo.id):
                return False
            [lease] = rows(connection, _LEASED, repo.name)
            if self._is_held(connection, repo) or (lease["at"] or 0.0) > self._clock():
                return False
            connection.execute("DELETE FROM repos WHERE id = ?", [repo.id])
            connection.execute("INSERT OR IGNORE INTO allowed_ends VALUES (?)", [repo.name])
        return True

    def ending(self) -> list[str]:
        """The names that ended, are not registered again, and whose files may still be there."""
        with self._database.reading() as connection:
            found = rows(connection, "SELECT name FROM allowed_ends WHERE name NOT IN (SELECT name FROM repos)")
        return [row["name"] for row in found]

    def ended(self, name: str) -> None:
        """Notes that the files of a name that ended are gone."""
        with self._database.writing() as connection:
            connection.execute("DELETE FROM allowed_ends WHERE name = ?", [name])
