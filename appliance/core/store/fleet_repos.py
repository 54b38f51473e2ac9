"""The registry of the fleet as this node last saw it, and the changes of this node that the fleet does not have yet.

`fleet_repos` has the entry of each name with its revision in the bucket. A change that an operator made on this node
waits in `fleet_outbox`, one for each name. Both are written in the transaction that changes `repos`, so that a kill
leaves no half.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from appliance.core.models import Repo
from appliance.core.store.database import Database, rows
from appliance.core.store.fleet import enqueue, set_state

if TYPE_CHECKING:
    import sqlite_utils

KIND = "repo"
"""The kind of these changes in the outbox."""
BUCKET = "registry"
"""The key of the fleet state that names the bucket this node has seen; without it, this node was in no fleet yet."""
_OVERTAKEN = "registry-overtaken"
MOST_OVERTAKEN = 20
"""The most overtaken changes that are remembered, newest first."""
OVERTAKEN_FOR = 86400.0
"""Seconds for which an overtaken change is told."""


@dataclass(frozen=True)
class KnownEntry:
    """An entry of the fleet's registry, as a document, with its revision in the bucket."""

    revision: int
    document: dict[str, Any]


@dataclass(frozen=True)
class Pending:
    """A change of one repository that the fleet does not have yet. `id` is its place in the outbox.

    `repo` in the document is what the repository is to be. `is_new` says that it was registered here, not changed.
    """

    id: int
    document: dict[str, Any]

    @property
    def name(self) -> str:
        """The name of the repository."""
        return str(self.document["name"])

    @property
    def is_new(self) -> bool:
        """Whether this node registered it, so that it does not depend on what the fleet had under its name."""
        return bool(self.document["new"])

    @property
    def is_again(self) -> bool:
        """Whether the fleet had it already, in a bucket or under a key that was lost since."""
        return bool(self.document["again"])


@dataclass(frozen=True)
class Change:
    """A change of the registry: the repository as it is now, None if it was removed."""

    name: str
    repo: Repo | None
    url: str
    is_new: bool = False
    purged: bool = False


class Settled:
    """Notes, in the transaction of a change, that it made the registry what the fleet has.

    `overtaken` tells of a change of this node that another node's overtook. `pending` is a change that is done with.
    With `is_own` an operator of this node made the entry, and knows what was overtaken before.
    """

    def __init__(
        self,
        name: str,
        known: KnownEntry,
        *,
        pending: int | None = None,
        overtaken: str | None = None,
        is_own: bool = False,
    ) -> None:
        self.name = name
        self.known = known
        self.pending = pending
        self.overtaken = overtaken
        self.is_own = is_own

    def write(self, connection: sqlite_utils.Database, at: float) -> None:
        """Writes it, in the transaction of `connection`."""
        connection.execute(
            """INSERT INTO fleet_repos (name, revision, document) VALUES (?, ?, ?) ON CONFLICT (name)
            DO UPDATE SET revision = excluded.revision, document = excluded.document""",
            [self.name, self.known.revision, json.dumps(self.known.document)],
        )
        if self.pending is not None:
            connection.execute("DELETE FROM fleet_outbox WHERE id = ?", [self.pending])
        if self.is_own:
            _forget_overtaken(connection, self.name, at)
        if self.overtaken is not None:
            told = [{"name": self.name, "words": self.overtaken, "at": at}, *_overtaken(connection, at)]
            set_state(connection, _OVERTAKEN, json.dumps(told[:MOST_OVERTAKEN]))


class FleetRepoStore:
    """These tables in `database`. `clock` gives Unix seconds. Every method raises StoreError."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock

    def known(self, *names: str) -> dict[str, KnownEntry]:
        """The entries of these names that this node has applied, by name; without names all."""
        some, wanted = (" WHERE name IN (SELECT value FROM json_each(?))", [json.dumps(names)]) if names else ("", [])
        with self._database.reading() as connection:
            found = rows(connection, f"SELECT * FROM fleet_repos{some}", *wanted)
        return {row["name"]: KnownEntry(row["revision"], json.loads(row["document"])) for row in found}

    def pending(self) -> dict[str, Pending]:
        """Every change that the fleet does not have yet, by name, oldest first."""
        with self._database.reading() as connection:
            found = rows(connection, "SELECT id, document FROM fleet_outbox WHERE kind = ? ORDER BY id", KIND)
        waiting = [Pending(row["id"], json.loads(row["document"])) for row in found]
        return {each.name: each for each in waiting}

    def settle(self, settled: Settled) -> None:
        """Notes an entry of the fleet that changes nothing in the registry."""
        with self._database.writing() as connection:
            settled.write(connection, self._clock())

    def drop(self, pending: Pending) -> None:
        """Forgets a change that need not go out."""
        with self._database.writing() as connection:
            connection.execute("DELETE FROM fleet_outbox WHERE id = ?", [pending.id])

    def overtaken(self) -> list[str]:
        """What to tell of changes of this node that other nodes' overtook, newest first."""
        with self._database.reading() as connection:
            return [entry["words"] for entry in _overtaken(connection, self._clock())]

    def has_own_turns(self, name: str) -> bool:
        """Whether this node took a turn in a repository of this name that was not ended."""
        with self._database.reading() as connection:
            return bool(rows(connection, "SELECT 1 FROM turns WHERE repo = ? AND away = 0 LIMIT 1", name))

    def enter(self, bucket: str) -> bool:
        """Notes which bucket is the fleet's registry: its name and a word. Returns whether it is new here.

        Then what was known of the last bucket is forgotten, and this node offers every repository that an operator
        registered here.
        """
        with self._database.writing() as connection:
            before = _bucket(connection)
            if before == bucket:
                return False
            is_again = before is not None and before.partition(" ")[0] == bucket.partition(" ")[0]
            connection.execute("DELETE FROM fleet_repos")
            set_state(connection, BUCKET, bucket)
            for row in rows(connection, _SHARED):
                self._offer(connection, row, is_again=is_again)
        return True

    def offer_again(self, names: Sequence[str]) -> None:
        """Forgets entries that are gone from the bucket, and offers those that are registered here."""
        with self._database.writing() as connection:
            for name in names:
                connection.execute("DELETE FROM fleet_repos WHERE name = ?", [name])
                for row in rows(connection, f"{_SHARED} AND repos.name = ?", name):
                    self._offer(connection, row, is_again=True)

    def _offer(self, connection: sqlite_utils.Database, row: dict[str, Any], *, is_again: bool) -> None:
        if _pending(connection, row["name"]) is None:
            _queue(connection, _document(row["name"], row, is_new=True) | {"again": is_again}, self._clock())


_SHARED = """SELECT name, url, branch, interval, enabled AND listed AS enabled FROM repos WHERE source = 'cli'
    AND id NOT IN (SELECT repo_id FROM allowed_repos)"""


def queue_change(connection: sqlite_utils.Database, change: Change, at: float) -> None:
    """Has a change of an operator go out to the fleet, in the transaction of `connection`; nothing on a node alone."""
    if _bucket(connection) is None:
        return
    waiting = _pending(connection, change.name)
    _forget_overtaken(connection, change.name, at)
    repo = change.repo
    settings = {
        "url": change.url,
        "branch": repo.branch if repo else None,
        "interval": repo.interval if repo else None,
        "enabled": repo.enabled if repo else False,
    }
    was_new = waiting is not None and waiting.is_new and not waiting.document["removed"]
    is_new = repo is not None and (change.is_new or was_new)
    purged = change.purged or (repo is None and waiting is not None and bool(waiting.document["purged"]))
    document = _document(change.name, settings, is_new=is_new, removed=repo is None, purged=purged)
    if waiting is not None:
        if was_new and not change.is_new:
            document["registration"] = waiting.document["registration"]
        connection.execute("DELETE FROM fleet_outbox WHERE id = ?", [waiting.id])
    _queue(connection, document, at)


def _document(
    name: str, settings: dict[str, Any], *, is_new: bool, removed: bool = False, purged: bool = False
) -> dict[str, Any]:
    return {
        "name": name,
        "url": settings["url"],
        "branch": settings["branch"],
        "interval": settings["interval"],
        "enabled": bool(settings["enabled"]),
        "removed": removed,
        "purged": purged,
        "new": is_new,
        "again": False,
        "registration": uuid.uuid4().hex,
    }


def _queue(connection: sqlite_utils.Database, document: dict[str, Any], at: float) -> None:
    enqueue(connection, KIND, document | {"at": at}, at)


def _pending(connection: sqlite_utils.Database, name: str) -> Pending | None:
    found = rows(
        connection,
        "SELECT id, document FROM fleet_outbox WHERE kind = ? AND json_extract(document, '$.name') = ?",
        KIND,
        name,
    )
    return Pending(found[0]["id"], json.loads(found[0]["document"])) if found else None


def _bucket(connection: sqlite_utils.Database) -> str | None:
    found = rows(connection, "SELECT value FROM fleet_state WHERE key = ?", BUCKET)
    return found[0]["value"] if found else None


def _overtaken(connection: sqlite_utils.Database, now: float) -> list[dict[str, Any]]:
    found = rows(connection, "SELECT value FROM fleet_state WHERE key = ?", _OVERTAKEN)
    told: list[dict[str, Any]] = json.loads(found[0]["value"]) if found else []
    return [entry for entry in told if now - entry["at"] < OVERTAKEN_FOR]


def _forget_overtaken(connection: sqlite_utils.Database, name: str, now: float) -> None:
    told = _overtaken(connection, now)
    left = [entry for entry in told if entry["name"] != name]
    if left != told:
        set_state(connection, _OVERTAKEN, json.dumps(left))
