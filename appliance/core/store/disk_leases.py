"""Leases: which guest may use which image of a disk, and until when. They outlive restarts."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from appliance.core.errors import NotFound, UsageError
from appliance.core.models import Repo
from appliance.core.store.database import Database, rows
from appliance.core.text import escape, storable

LONGEST = 365 * 86400.0
"""The longest lease, in seconds, because an image that is leased is never removed to make room."""
FOLLOWED = 7 * 86400.0
"""Seconds after a request for the tip of a branch during which its next tips are built before anybody asks."""
KEPT = 30 * 86400.0
"""Seconds that the row of an ended lease stays; more than FOLLOWED, because `followed` reads these rows."""
LONGEST_GUEST = 200
"""The most characters that are stored of a guest's name."""


@dataclass(frozen=True)
class DiskLease:
    """One lease. `generation` and `name` identify the image, `form` is its form; times are Unix seconds.

    `released_at` is when the lease was released or expired, and None before that. `guest` is the platform's label for
    the guest that has it. `modules` is None without submodules, otherwise the ids of the private registrations among
    them. `missing` says what the workspace lacks, each with `path` and `reason`.
    """

    id: str
    repo: str
    branch: str
    commit: str
    form: str
    generation: int
    name: str
    guest: str | None
    created_at: float
    expires_at: float
    released_at: float | None
    modules: tuple[int, ...] | None = None
    missing: tuple[dict[str, str], ...] = ()


class UnknownLease(NotFound):
    """No lease has that id."""

    def __init__(self, lease_id: str) -> None:
        super().__init__(f"there is no lease {escape(lease_id)[:100]}", hint="`disks` lists them")


class DiskLeaseStore:
    """The leases in `database`. `clock` gives Unix seconds. Every method raises StoreError."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock

    def issue(
        self,
        repo: Repo,
        *,
        branch: str,
        commit: str,
        form: str,
        generation: int,
        name: str,
        guest: str | None,
        ttl: float,
        of_tip: bool,
        modules: Sequence[int] | None = None,
        missing: Sequence[Mapping[str, str]] = (),
    ) -> DiskLease:
        """Creates a lease that ends `ttl` seconds from now. Raises UsageError for less than a second or over LONGEST.

        `of_tip` says that the request was for the tip of the branch, so the branch is followed. Deletes rows of leases
        that ended more than KEPT seconds ago.
        """
        check_ttl(ttl)
        now = self._clock()
        columns = {
            "id": secrets.token_hex(4),
            "repo": repo.name,
            "repo_id": repo.id,
            "branch": storable(branch),
            "commit_id": commit,
            "form": form,
            "generation": generation,
            "name": name,
            "guest": None if guest is None else storable(guest)[:LONGEST_GUEST],
            "of_tip": of_tip,
            "created_at": now,
            "expires_at": now + ttl,
            "modules": _text_of(modules),
            "missing": json.dumps(missing) if missing else None,
        }
        with self._database.writing() as connection:
            connection.execute("DELETE FROM disk_leases WHERE min(expires_at, released_at) < ?", [now - KEPT])
            while rows(connection, "SELECT 1 FROM disk_leases WHERE id = ?", columns["id"]):
                columns["id"] = secrets.token_hex(4)
            connection.table("disk_leases").insert(columns)
            [row] = rows(connection, "SELECT * FROM disk_leases WHERE id = ?", columns["id"])
        return _lease(row)

    def find(self, lease_id: str) -> DiskLease:
        """A lease, whether or not it has ended. Raises UnknownLease."""
        with self._database.reading() as connection:
            found = rows(connection, "SELECT * FROM disk_leases WHERE id = ?", storable(lease_id))
        if not found:
            raise UnknownLease(lease_id)
        return _lease(found[0])

    def live(self, repo: str | None = None) -> list[DiskLease]:
        """The leases that have not ended, of one repository or of all, newest first."""
        with self._database.reading() as connection:
            found = rows(
                connection,
                """SELECT * FROM disk_leases WHERE released_at IS NULL AND expires_at > ?1
                   AND (?2 IS NULL OR repo = ?2) ORDER BY created_at DESC, rowid DESC""",
                self._clock(),
                repo,
            )
        return [_lease(row) for row in found]

    def count_by_repo(self) -> dict[str, int]:
        """How many leases of each repository have not ended, without repositories that have none."""
        with self._database.reading() as connection:
            found = rows(
                connection,
                """SELECT repo, count(*) AS leases FROM disk_leases
                   WHERE released_at IS NULL AND expires_at > ? GROUP BY repo""",
                self._clock(),
            )
        return {row["repo"]: row["leases"] for row in found}

    def release(self, lease_id: str) -> DiskLease:
        """Ends a lease at once. A lease that has already ended does not change. Raises UnknownLease."""
        with self._database.writing() as connection:
            connection.execute(
                "UPDATE disk_leases SET released_at = ? WHERE id = ? AND released_at IS NULL",
                [self._clock(), storable(lease_id)],
            )
        return self.find(lease_id)

    def release_all(self, repo: str) -> None:
        """Ends all leases of a repository, because its disks are deleted."""
        with self._database.writing() as connection:
            connection.execute(
                "UPDATE disk_leases SET released_at = ? WHERE repo = ? AND released_at IS NULL", [self._clock(), repo]
            )

    def expire(self) -> list[DiskLease]:
        """Ends every lease whose time is over, and returns them."""
        now = self._clock()
        due = "released_at IS NULL AND expires_at <= ?"
        with self._database.reading() as connection:
            # Nearly always no lease is due, and then the lock for writing is not needed.
            if not rows(connection, f"SELECT 1 FROM disk_leases WHERE {due} LIMIT 1", now):
                return []
        with self._database.writing() as connection:
            found = rows(connection, f"SELECT * FROM disk_leases WHERE {due}", now)
            connection.execute(f"UPDATE disk_leases SET released_at = expires_at WHERE {due}", [now])
        return [_lease(row) for row in found]

    def followed(self, repo: Repo) -> dict[tuple[str, str, tuple[int, ...] | None], float]:
        """What of the tips of branches was requested within FOLLOWED seconds, with the time of the last request.

        Each is a branch, a form, and the lease's `modules`. Only requests for this registration count, because another
        one of the same name may have another upstream.
        """
        with self._database.reading() as connection:
            found = rows(
                connection,
                """SELECT branch, form, modules, max(created_at) AS at FROM disk_leases
                   WHERE repo_id = ? AND of_tip AND created_at > ? GROUP BY branch, form, modules""",
                repo.id,
                self._clock() - FOLLOWED,
            )
        return {(row["branch"], row["form"], _modules_in(row["modules"])): row["at"] for row in found}


def _text_of(modules: Sequence[int] | None) -> str | None:
    return None if modules is None else " ".join(map(str, modules))


def _modules_in(text: str | None) -> tuple[int, ...] | None:
    return None if text is None else tuple(int(word) for word in text.split())


def check_ttl(ttl: float) -> None:
    """Raises UsageError unless a lease may be this long, in seconds."""
    if not 1 <= ttl <= LONGEST:
        raise UsageError("a lease lasts at least one second and at most 365 days", hint="for example --ttl 24h")


def _lease(row: dict[str, Any]) -> DiskLease:
    names = ("id", "repo", "branch", "form", "generation", "name", "guest", "created_at", "expires_at", "released_at")
    return DiskLease(
        commit=row["commit_id"],
        modules=_modules_in(row["modules"]),
        missing=tuple(json.loads(row["missing"] or "[]")),
        **{name: row[name] for name in names},
    )
