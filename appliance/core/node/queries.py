"""Reads what the live view shows, piece by piece, so that 1,000 repositories and 10,000 sessions stay fast."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from appliance.core.errors import GitmirrorError, NotFound, NotServing
from appliance.core.maintenance.usage import UsageMeter
from appliance.core.models import CommitText, Health, RefText, Repo, State, Turn
from appliance.core.node.node import Node
from appliance.core.node.running import RunningNode
from appliance.core.node.sessions import open_browser
from appliance.core.node.state_dir import make_privacy, open_stores
from appliance.core.node.storage import storage_document
from appliance.core.observability.report import status_document
from appliance.core.store.figures import SPANS, FigureSeries
from appliance.core.store.guests import guest_document
from appliance.core.store.session_search import find_keys
from appliance.core.store.stores import Stores

ANSWERS_WITHIN = 3.0
"""Seconds within which a healthy `serve` always returns its pulse."""
MOST_REFS = 2000
"""The most refs of a mirror that are listed."""
PRIVACY_HOLDS = 30.0
"""Seconds for which the list of private repositories is reused."""


@dataclass(frozen=True)
class RepoView:
    """One repository: its registration, its health, and what follows from them.

    `word` and `hint` are the kind of the last error and what to do about it. `private` means that guests need a token.
    `leases` is the number of leases of its disks that have not ended.
    """

    repo: Repo
    health: Health
    state: State
    branch: str | None
    interval: float
    word: str | None = None
    hint: str | None = None
    private: bool = False
    leases: int = 0


@dataclass(frozen=True)
class Disk:
    """Sizes in bytes of the file system with the state directory, and its free space.

    `storage` is the document of `storage --json`, and `leases` the number of leases of disks that have not ended.
    """

    total: int
    free: int
    storage: Mapping[str, Any]
    leases: int = 0


class NodeQueries:
    """Reads one node for the live view. It never creates a missing database.

    Methods raise GitmirrorError and may be called from several threads.
    """

    def __init__(self, node: Node, clock: Callable[[], float] = time.time) -> None:
        self.node = node
        self.clock = clock
        self._opening = threading.Lock()
        self._stores: Stores | None = None
        self._private: tuple[float, tuple[int, ...], frozenset[int]] | None = None
        self._meter = UsageMeter(node.layout)
        self._tips: dict[tuple[str, str], CommitText | None] = {}

    def close(self) -> None:
        """Closes the database."""
        if self._stores is not None:
            self._stores.database.close()

    def pulse(self) -> dict[str, Any] | None:
        """What only a running `serve` knows (see daemon/status.py), or None without one."""
        return self.node.current().pulse(ANSWERS_WITHIN)

    def repos(self, cloning: Collection[str] = ()) -> list[RepoView]:
        """All repositories from the database, by name; `cloning` are the names that `serve` reports as cloning."""
        stores, config = self._open(), self.node.config
        repos, healths = stores.registry.all(), stores.health.all()
        # `serve` updates the number of sessions in the health only after it reported a recording, so they are counted
        # here.
        sessions, leases = stores.sessions.count_by_repo(), stores.disk_leases.count_by_repo()
        healths = {
            repo.id: _updated(healths.get(repo.id, Health()), sessions.get(repo.name, 0), repo.name in cloning)
            for repo in repos
        }
        documents = status_document(repos, healths, config, self.clock(), audit_head=None)["repos"]
        private = self._private_now(repos)
        return [
            RepoView(
                repo,
                healths[repo.id],
                document["state"],
                document["branch"],
                repo.interval or config.refresh.interval,
                document.get("error"),
                document.get("hint"),
                repo.id in private,
                leases.get(repo.name, 0),
            )
            for repo, document in zip(repos, documents, strict=True)
        ]

    def _private_now(self, repos: Sequence[Repo]) -> frozenset[int]:
        """Ids of private repositories, looked up every PRIVACY_HOLDS seconds because 1,000 of them take 20 ms."""
        known = tuple(repo.id for repo in repos)
        if self._private is None or self._private[1] != known or time.monotonic() > self._private[0]:
            privacy = make_privacy(self.node.layout, self.node.config)
            private = frozenset(repo.id for repo in repos if privacy.is_private(repo))
            self._private = (time.monotonic() + PRIVACY_HOLDS, known, private)
        return self._private[2]

    def tip(self, name: str, oid: str) -> CommitText | None:
        """The commit at a tip, or None if the mirror cannot be read. It is cached, because a commit never changes."""
        key = (name, oid)
        if key not in self._tips:
            try:
                with open_browser(self.node, name) as browser:
                    self._tips[key] = browser.commit(oid)
            except GitmirrorError:
                return None
        return self._tips[key]

    def refs(self, name: str) -> list[RefText]:
        """Branches and tags of a mirror, newest first."""
        with open_browser(self.node, name) as browser:
            return browser.refs(MOST_REFS)

    def recent(self, name: str, limit: int) -> list[tuple[float, float, str]]:
        """The last refreshes, oldest first: start time, duration in seconds, result."""
        return self._open().health.recent(name, limit)

    def refreshes(self, name: str | None, limit: int) -> list[dict[str, Any]]:
        """The history of refreshes, newest first."""
        return self._open().health.refreshes(name, limit)

    def hydrations(self, name: str | None, limit: int) -> list[dict[str, Any]]:
        """Hydrations that ended, newest first."""
        return self._open().activity.newest(limit, repo=name)

    def transfers(self) -> list[dict[str, Any]]:
        """What guests are being sent now, the oldest first; nothing without a `serve`, or with one of before."""
        with contextlib.suppress(NotFound, NotServing):
            return self.node.current().transfers()
        return []

    def hydration_counts(self, since: float, width: float) -> list[dict[str, Any]]:
        """How many hydrations were completed in each slot of `width` seconds: `{repo, slot, way, count}`."""
        return self._open().activity.counts(since, width)

    def figures(self, span: str) -> FigureSeries:
        """What the node did in a span of SPANS, in slots; the newest end a few seconds ago."""
        return self._open().figures.read(SPANS[span], self.clock())

    def pushes(self, name: str | None, limit: int) -> list[dict[str, Any]]:
        """Push attempts from the audit log, newest first."""
        return self._open().audit.entries(repo=name, limit=limit)

    def sessions(self, name: str | None, limit: int) -> tuple[list[dict[str, Any]], int]:
        """The newest sessions, and the number of all sessions."""
        stores = self._open()
        return stores.sessions.page(name, limit), stores.sessions.count(name)

    def find_sessions(self, path: str | None = None, text: str | None = None) -> frozenset[tuple[str, str]]:
        """Repository and name of the sessions that touched a path, or have a text in their name or their messages.

        Raises UsageError for what is no path inside a repository.
        """
        return find_keys(self._open().database, path, text)

    def unsearched(self) -> int:
        """How many turns no search knows yet; a running `serve` reads them in the background."""
        return self._open().turn_index.pending()

    def session(self, name: str, session: str) -> dict[str, Any] | None:
        """The session of exactly that name, as `sessions` returns it; None if there is none."""
        stores = self._open().sessions
        found = stores.get(name, session)
        if found is None:
            return None
        turns = stores.turns(name, session)
        return found | {"subject": turns[-1].subject if turns else None}

    def guests(self) -> list[dict[str, Any]]:
        """Known guests, by name, as `guests --json` shows them, but for `problem`, which only the pulse knows."""
        stores = self._open()
        last = stores.guests.last_seen()
        return [guest_document(guest, last.get(guest.name)) for guest, _ in stores.guests.all()]

    def hydrations_since(self, at: float, last_id: int, most: int) -> list[dict[str, Any]]:
        """Hydrations since Unix second `at` and after the row `last_id`, oldest first: the newest `most`."""
        return self._open().activity.since(at, last_id, most)

    def disks_by_guest(self) -> dict[str, int]:
        """How many disks each guest has leased, by the name that the platform gave it."""
        return dict(Counter(lease.guest for lease in self._open().disk_leases.live() if lease.guest))

    def sessions_of(self, guest: str, limit: int) -> list[dict[str, Any]]:
        """The newest sessions that a known guest recorded."""
        return list(self._open().sessions.find(guest=guest, limit=limit)[0])

    def turns(self, name: str, session: str) -> list[Turn]:
        """A session's turns, oldest first."""
        return self._open().sessions.turns(name, session)

    def details(self, name: str, session: str) -> dict[int, dict[str, Any]]:
        """`notes` and `attachments` of each turn of a session that has any, by the turn's id."""
        return self._open().details.of_session(name, session)

    def fleet(self) -> dict[str, Any] | None:
        """The document of `fleet status --json`; None for a node alone."""
        return self.node.current().fleet() if self.node.config.fleet.is_on else None

    def disk(self) -> Disk:
        """The disk usage of the node."""
        stores = self._open()
        usage = shutil.disk_usage(self.node.layout.state)
        leases = sum(stores.disk_leases.count_by_repo().values())
        return Disk(usage.total, usage.free, self._storage(stores), leases)

    def _storage(self, stores: Stores) -> dict[str, Any]:
        node = self.node.current()
        if isinstance(node, RunningNode):
            # A `serve` of an earlier version has no such route.
            with contextlib.suppress(NotFound, NotServing):
                return node.storage()
        # Measured here, and what has not changed since the last time is not looked at again.
        usage, packs = self._meter.measure(paced=True), stores.sessions.packs_by_repo()
        return storage_document(usage, packs, self.node.layout.state, self.node.config.storage.budget)

    def _open(self) -> Stores:
        with self._opening:
            if self._stores is None:
                self._stores = open_stores(self.node.layout, create=False)
            return self._stores


def _updated(health: Health, sessions: int, cloning: bool) -> Health:
    """Returns the same object if nothing differs, because copying 1,000 of them would delay keys by milliseconds."""
    if (health.sessions, health.cloning) == (sessions, cloning):
        return health
    return replace(health, sessions=sessions, cloning=cloning)
