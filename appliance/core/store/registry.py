"""The registry: one table for the config's static list and for the repositories that `add-repo` registers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from appliance.core.errors import Conflict, NotFound, UsageError
from appliance.core.models import ALLOWED, Repo
from appliance.core.names import check_branch_name, nearest_repos
from appliance.core.store.database import Database, rows
from appliance.core.store.fleet_repos import Change, Settled, queue_change

if TYPE_CHECKING:
    import sqlite_utils


@dataclass(frozen=True)
class Wanted:
    """A repository to register. Its name and URL are already validated."""

    name: str
    url: str
    branch: str | None = None
    interval: float | None = None


class UnknownRepo(NotFound):
    """No repository of that name is registered: a command was used wrongly. `known` are the names that are.

    One that is meant is only suggested and never taken, because it may be another one tomorrow.
    """

    default_exit_code = UsageError.default_exit_code

    def __init__(self, name: str, known: Iterable[str] = ()) -> None:
        near = nearest_repos(name, known)
        meant = f"did you mean {' or '.join(near)}? " if near else ""
        super().__init__(f"{name} is not registered", hint=f"{meant}`repos` lists all of them, `add-repo URL` adds one")


class Registry:
    """The registered repositories in `database`. `same_url` says whether two URLs name the same upstream.

    What an operator adds, changes and removes waits for the fleet, if this node has been in one. Repositories that the
    config lists or that `[[allow]]` brought are this node's own.
    """

    def __init__(self, database: Database, clock: Callable[[], float], same_url: Callable[[str, str], bool]) -> None:
        self._database = database
        self._clock = clock
        self._same_url = same_url

    def all(self) -> list[Repo]:
        """Every registered repository, sorted by name."""
        with self._database.reading() as connection:
            return [_repo(row) for row in rows(connection, f"{_SELECT} ORDER BY name")]

    def get(self, name: str) -> Repo:
        """The repository with that name. Raises UnknownRepo."""
        with self._database.reading() as connection:
            return _repo(_row(connection, name))

    def find(self, name: str) -> Repo | None:
        """The repository with that name, or None."""
        with self._database.reading() as connection:
            found = rows(connection, f"{_SELECT} WHERE name = ?", name)
        return _repo(found[0]) if found else None

    def add(self, wanted: Wanted) -> Repo:
        """Registers a repository, or updates the one with the same URL; given options replace the stored ones.

        Raises Conflict if the name belongs to another URL, or if options of a config repository would change.
        """
        with self._database.writing() as connection:
            found = rows(connection, f"{_SELECT} WHERE name = ?", wanted.name)
            if not found:
                added = self.insert(connection, wanted, "cli")
                self._tell(connection, added, is_new=True)
                return added
            [row] = found
            if not self._same_url(row["url"], wanted.url):
                raise Conflict(
                    f"the name {wanted.name} is taken by {row['url']}",
                    hint="give this repository a different name: --name OWNER/REPO",
                )
            changes = {
                key: value
                for key, value in (("branch", wanted.branch), ("interval", wanted.interval))
                if value is not None and value != row[key]
            }
            if row["source"] == "config" and row["listed"]:
                if changes:
                    raise Conflict(
                        f"{wanted.name} comes from the config file",
                        hint="change its branch or interval there",
                    )
            else:
                changes |= {"source": "cli", "listed": 1}
                _adopt(connection, row["id"])
            _update(connection, row["id"], **changes, enabled=1)
            added, before = _repo(_row(connection, wanted.name)), _repo(row)
            if added != before:
                self._tell(connection, added, is_new=before.source != added.source)
            return added

    def remove(self, name: str, config_file: str, *, purged: bool = False) -> Repo:
        """Unregisters a repository. Raises UnknownRepo, or Conflict for a repository that the config lists."""
        with self._database.writing() as connection:
            row = _row(connection, name)
            if row["source"] == "config" and row["listed"]:
                raise Conflict(
                    f"{name} is listed in the config",
                    hint=f"remove its [[repos]] entry from {config_file} and reload",
                )
            self._delete(connection, row["id"])
            removed = _repo(row)
            if removed.source == "cli":
                change = Change(name, None, removed.url, purged=purged)
                queue_change(connection, change, self._clock())
            return removed

    def change(self, name: str, wanted: Mapping[str, Any]) -> Repo:
        """Changes `enabled`, `branch` and `interval`, as far as `wanted` has them. Raises UnknownRepo.

        A repository that the config no longer lists then counts as added by `add-repo`. Raises Conflict for the branch
        or the interval of one that the config lists, and UsageError for what is no branch's name.
        """
        check_branch_name(wanted.get("branch"))
        with self._database.writing() as connection:
            row = _row(connection, name)
            changes = {key: wanted[key] for key in ("branch", "interval") if key in wanted and wanted[key] != row[key]}
            if changes and row["source"] == "config" and row["listed"]:
                raise Conflict(f"{name} comes from the config file", hint="change its branch or interval there")
            if "enabled" in wanted:
                changes["enabled"] = int(wanted["enabled"])
                if wanted["enabled"] and not row["listed"]:
                    changes |= {"listed": 1, "source": "cli"}
            if changes:
                _update(connection, row["id"], **changes)
            changed, before = _repo(_row(connection, name)), _repo(row)
            if changed != before:
                self._tell(connection, changed, is_new=before.source != changed.source)
            return changed

    def follow_fleet(self, wanted: Wanted, settled: Settled, *, enabled: bool, renew: bool) -> None:
        """Makes a registration what the fleet has, and notes that it is; leaves one that the config lists as it is.

        `renew` replaces a registration by a new one, to which nothing that was granted to the old one gives access.
        """
        with self._database.writing() as connection:
            found = rows(connection, f"{_SELECT} WHERE name = ?", wanted.name)
            if not (found and _is_listed(found[0])):
                if found and renew:
                    self._delete(connection, found[0]["id"])
                    found = []
                repo_id = found[0]["id"] if found else self.insert(connection, wanted, "cli").id
                _adopt(connection, repo_id)
                _update(
                    connection,
                    repo_id,
                    url=wanted.url,
                    branch=wanted.branch,
                    interval=wanted.interval,
                    source="cli",
                    listed=1,
                    enabled=int(enabled),
                )
            settled.write(connection, self._clock())

    def withdraw(self, name: str, settled: Settled | None) -> bool:
        """Unregisters what the fleet removed or has for another URL. Returns whether it was registered here.

        With `settled`, notes that the fleet's entry is applied. What the config lists stays.
        """
        with self._database.writing() as connection:
            found = [row for row in rows(connection, f"{_SELECT} WHERE name = ?", name) if not _is_listed(row)]
            for row in found:
                self._delete(connection, row["id"])
            if settled is not None:
                settled.write(connection, self._clock())
        return bool(found)

    def _delete(self, connection: sqlite_utils.Database, repo_id: int) -> None:
        connection.execute("DELETE FROM repos WHERE id = ?", [repo_id])
        connection.execute(
            "UPDATE read_tokens SET revoked_at = ? WHERE repo_id = ? AND revoked_at IS NULL", [self._clock(), repo_id]
        )

    def _tell(self, connection: sqlite_utils.Database, repo: Repo, *, is_new: bool) -> None:
        if repo.source == "cli":
            queue_change(connection, Change(repo.name, repo, repo.url, is_new=is_new), self._clock())

    def reconcile(self, listed: Sequence[Wanted]) -> list[str]:
        """Makes the table match the config's list; returns one sentence for each entry that cannot be applied.

        A repository that the list dropped is disabled, not deleted. One that `add-repo` registered under the same name
        for another URL stays as it is, because taking its mirror over would serve other commits under its name.
        """
        problems = []
        with self._database.writing() as connection:
            for wanted in listed:
                found = rows(connection, f"{_SELECT} WHERE name = ?", wanted.name)
                if not found:
                    self.insert(connection, wanted, "config")
                    continue
                [row] = found
                if row["source"] == "cli" and not self._same_url(row["url"], wanted.url):
                    by = "a guest asked for it and [[allow]] allows it" if row["allowed"] else "add-repo registered it"
                    problems.append(
                        f"the config lists {wanted.name} for {wanted.url}, but {by} for "
                        f"{row['url']}: run remove-repo {wanted.name} first"
                    )
                    continue
                _adopt(connection, row["id"])
                _update(
                    connection,
                    row["id"],
                    source="config",
                    listed=1,
                    url=wanted.url,
                    branch=wanted.branch,
                    interval=wanted.interval,
                )
            names = {wanted.name for wanted in listed}
            for row in rows(connection, "SELECT * FROM repos WHERE source = 'config' AND listed = 1"):
                if row["name"] not in names:
                    _update(connection, row["id"], listed=0)
        return problems

    def insert(self, connection: sqlite_utils.Database, wanted: Wanted, source: str) -> Repo:
        """Adds a repository whose name is free, in the transaction of `connection`."""
        columns = {
            "name": wanted.name,
            "url": wanted.url,
            "branch": wanted.branch,
            "interval": wanted.interval,
            "source": source,
            "created_at": self._clock(),
        }
        connection.table("repos").insert(columns)
        # What an earlier repository of this name left is this one's now.
        connection.execute("DELETE FROM allowed_ends WHERE name = ?", [wanted.name])
        row = _row(connection, wanted.name)
        connection.table("health").insert({"repo_id": row["id"]})
        return _repo(row)


_SELECT = """SELECT repos.*, allowed_repos.repo_id IS NOT NULL AS allowed
    FROM repos LEFT JOIN allowed_repos ON allowed_repos.repo_id = repos.id"""


def _row(connection: sqlite_utils.Database, name: str) -> dict[str, Any]:
    found = rows(connection, f"{_SELECT} WHERE name = ?", name)
    if not found:
        raise UnknownRepo(name, [row["name"] for row in rows(connection, "SELECT name FROM repos ORDER BY name")])
    return found[0]


def _is_listed(row: dict[str, Any]) -> bool:
    return bool(row["source"] == "config" and row["listed"])


def _adopt(connection: sqlite_utils.Database, repo_id: int) -> None:
    """Makes an allowed repository the operator's, so that it does not expire any more."""
    connection.execute("DELETE FROM allowed_repos WHERE repo_id = ?", [repo_id])


def _update(connection: sqlite_utils.Database, repo_id: int, **changes: Any) -> None:
    connection.table("repos").update(repo_id, changes)


def _repo(row: dict[str, Any]) -> Repo:
    return Repo(
        id=row["id"],
        name=row["name"],
        url=row["url"],
        branch=row["branch"],
        source=ALLOWED if row["allowed"] else row["source"],
        interval=row["interval"],
        enabled=bool(row["enabled"] and row["listed"]),
        created_at=row["created_at"],
    )
