"""A running `serve` as its commands, its status and its HTTP routes see it."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from appliance.core.access.catalog import Catalog
from appliance.core.access.gate import AccessGate
from appliance.core.access.privacy import Privacy
from appliance.core.config.settings import Config
from appliance.core.git.command import Git
from appliance.core.git.mirror import Mirror
from appliance.core.git.mirror_locks import MirrorLocks
from appliance.core.health import lag_of, state_of
from appliance.core.layout import Layout
from appliance.core.models import UNHEALTHY, Health, Repo, State, Tar
from appliance.core.node.salvage import salvaged_repos
from appliance.core.node.state_dir import make_privacy
from appliance.core.observability.push_watch import PushWatch
from appliance.core.observability.report import repo_documents, status_document
from appliance.core.recording.found import FoundTurns
from appliance.core.recording.hook_guard import OFF, HookGuard
from appliance.core.recording.push_authorizer import PushAuthorizer
from appliance.core.recording.retention import Retention
from appliance.core.refresh.scheduler import Scheduler, Settings
from appliance.core.serving.fetch.ref_snapshots import RefSnapshots
from appliance.core.serving.fetch.response_cache import CacheResult, ResponseCache
from appliance.core.serving.fetch.warmer import Warmer
from appliance.core.serving.net.acceptor import Acceptor
from appliance.core.serving.net.admission import Admission
from appliance.core.serving.net.http import TextResponse
from appliance.core.store.database import StoreError
from appliance.core.store.stores import Stores
from appliance.core.units import format_duration
from appliance.core.workspace.guest_kit import render_kit
from appliance.core.workspace.snapshots import Snapshots

_PULSE_ONLY = frozenset({"connections", "max_clients", "cloning"})


@dataclass
class Live:
    """The rooms of one `serve`, and what it knows in memory.

    `problems` are warnings about the config's list, `complaints` are asked for more of them at each `status`;
    `registry_lost` is why the database could not be read at the start: until it can be, what is followed is salvaged.
    `on_followed` is called when other repositories are followed, or others enabled.
    """

    layout: Layout
    config: Config
    stores: Stores
    git: Git
    locks: MirrorLocks
    scheduler: Scheduler
    guard: HookGuard
    desk: PushAuthorizer
    admission: Admission
    door: AccessGate
    acceptors: dict[str, Acceptor]
    cache: ResponseCache
    snapshots: RefSnapshots
    warmer: Warmer
    workspaces: Snapshots
    retention: Retention
    push_watch: PushWatch
    found: FoundTurns
    repos: list[Repo] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    complaints: list[Callable[[], str | None]] = field(default_factory=list)
    registry_lost: StoreError | None = None
    on_followed: Callable[[], None] = lambda: None
    urls: dict[str, str | None] = field(default_factory=lambda: {"git": None, "http": None, "admin": None})

    def mirror(self, name: str) -> Mirror:
        """The mirror of a repository, whether or not it is there."""
        return Mirror(self.layout.mirror(name), self.git)

    def followed_branch(self, repo: Repo) -> str | None:
        """The branch that snapshots and warming follow: the registered one, else the upstream's HEAD."""
        head = self.scheduler.health(repo.id).head
        return repo.branch or (head.removeprefix("refs/heads/") if head else None)

    async def tar(self, repo: Repo, branch: str | None) -> Tar:
        """The snapshot of a branch as it is sent. Raises NoSnapshot, GitError."""
        await self.workspaces.get(repo, branch)
        refs = await self.snapshots.get(repo)
        # Again, and nothing waited for until it is opened: it may have been replaced meanwhile.
        snapshot, path = await self.workspaces.get(repo, branch)
        tip = refs.tip(f"refs/heads/{snapshot.branch}")
        return Tar(path, snapshot.etag, snapshot.commit, tip)

    def guest_kit(self) -> str:
        """The guest kit with this mirror's addresses and repositories."""
        shown = [repo for repo in self.repos if self.door.catalog.private(repo.id) is None]
        return render_kit(self.public_url("git"), self.public_url("http"), shown)

    @property
    def privacy(self) -> Privacy:
        """Who may read which mirror, by the config that is in use."""
        return make_privacy(self.layout, self.config)

    def publish(self) -> None:
        """From here on guests find what the repositories known and the config in use let them find."""
        self.door.catalog = Catalog(self.repos, self.privacy.is_private)

    def reconsider(self, repo_id: int) -> None:
        """A repository was refreshed: without a credential that proves that everybody may read it."""
        repo = self.door.catalog.private(repo_id)
        if repo is not None and not self.privacy.is_private(repo):
            self.publish()

    def follow_registry(self) -> None:
        """Tells everyone who follows the registry what is in it now. Raises StoreError, then nothing changed."""
        self._follow(self.stores.registry.all(), self.stores.health.all())
        self.registry_lost = None

    def follow_salvaged(self, error: StoreError) -> None:
        """The same with what the config and the mirrors give, because the registry cannot be read."""
        self.registry_lost = error
        repos = salvaged_repos(self.layout, self.config)
        self._follow(repos, {repo.id: Health(cloned=self.mirror(repo.name).exists()) for repo in repos})

    def warm(self) -> None:
        """Makes what guests will ask for, of every repository that is followed."""
        for repo in self.repos:
            if repo.enabled:
                self.warmer.warm(repo)
                self.workspaces.refresh(repo)

    def _follow(self, repos: list[Repo], healths: dict[int, Health]) -> None:
        kept = {repo.id for repo in repos if repo.enabled}
        for gone in [repo for repo in self.repos if repo.id not in kept]:
            self.warmer.forget(gone.id)
            self.cache.evict(gone.id)
            self.workspaces.forget(gone)
        self.repos = repos
        self.scheduler.follow(repos, healths, Settings(self.config.refresh.interval, self.config.refresh.concurrency))
        self.publish()
        self.on_followed()

    @property
    def clients(self) -> int:
        """Guests' connections at this moment, waiting ones included."""
        return len(self.acceptors["git"]) + len(self.acceptors["http"])

    def healths(self) -> dict[int, Health]:
        """Health by repository id, as of now."""
        return {repo.id: self.scheduler.health(repo.id) for repo in self.repos}

    def repo_documents(self, repos: list[Repo] | None = None) -> list[dict[str, Any]]:
        """The registry, or some of it, as `repos --json` has it."""
        chosen = self.repos if repos is None else repos
        return self.privacy.told(repo_documents(chosen, self.healths(), self.config, time.time()))

    def ready_line(self) -> str:
        """What `serve` prints when it accepts guests: the real addresses, a listener that is off left out."""
        labelled = [("", self.urls["git"]), ("", self.urls["http"]), ("admin ", self.urls["admin"])]
        return " ".join(["ready", *(f"{label}{url}" for label, url in labelled if url)])

    def summary(self) -> str:
        """The line that `systemctl status` shows: counts, and the repository that needs somebody most."""
        documents = self.repo_documents()
        counts = Counter(document["state"] for document in documents)
        states = ", ".join(f"{count} {state}" for state, count in sorted(counts.items())) or "none registered"
        off = f"; {OFF}: {self.push_watch.off.words}" if self.push_watch.off else ""
        return f"{self.clients} guests; repositories: {states}{self._worst()}{off}"

    def _worst(self) -> str:
        """Failing before stale, and then what has lagged for longest."""
        now, unwell = time.time(), []
        for repo in self.repos:
            health = self.scheduler.health(repo.id)
            state = state_of(repo, health, now, self.config.refresh.stale_after)
            if state in UNHEALTHY:
                lag = lag_of(health, now)
                unwell.append((state is State.FAILING, math.inf if lag is None else lag, repo, state, health))
        if not unwell:
            return ""
        _, lag, repo, state, health = max(unwell, key=lambda each: each[:2])
        told = [str(state), *([health.error_kind] if health.error_kind else [])]
        behind = "never verified" if lag == math.inf else f"{format_duration(lag)} behind"
        return f"; worst: {repo.name} ({', '.join([*told, behind])})"

    def readiness(self) -> TextResponse:
        """`/readyz`: every enabled repository was tried once. Pushes that are off are said, and are no reason for 503.

        Who asks this sends guests here or elsewhere, and most of what guests want is to read.
        """
        untried = [repo.name for repo in self.repos if repo.enabled and self._untried(repo)]
        if untried:
            return TextResponse(503, f"not tried yet: {', '.join(untried)}\n")
        off = self.push_watch.off
        return TextResponse(200, f"ready\n{off.warning}\n" if off else "ready\n")

    def _untried(self, repo: Repo) -> bool:
        return self.scheduler.health(repo.id).checked_at is None

    async def status(self) -> dict[str, Any]:
        """The contract's `status`."""
        pulse = await self.pulse()
        live = {key: pulse[key] for key in pulse if key not in _PULSE_ONLY}
        live["warmed"] = {repo.name: self.warmer.state(repo.id) for repo in self.repos}
        audit_head = live.pop("audit_head")
        found = status_document(self.repos, self.healths(), self.config, time.time(), audit_head=audit_head, live=live)
        return found | {"repos": self.privacy.told(found["repos"])}

    async def pulse(self) -> dict[str, Any]:
        """What only a running serve knows, without the repositories: it may be asked for every second.

        Besides keys of `status`: `connections` by listener, `max_clients`, and the names that are `cloning`.
        """
        off = await self.push_watch.look()
        warnings = [*self.problems, *([off.warning] if off else [])]
        warnings += [said for complain in self.complaints if (said := complain())]
        return {
            "serving": True,
            "pid": os.getpid(),
            **{name: self.public_url(name) for name in ("git", "http", "admin")},
            "clients": self.clients,
            "audit_head": self.push_watch.audit_head,
            "pushes": self.push_watch.document(),
            "warnings": warnings,
            "cache": {
                "hits": self.cache.counts[CacheResult.HIT],
                "misses": self.cache.counts[CacheResult.MISS],
                "joined": self.cache.counts[CacheResult.JOINED],
                "direct": self.cache.counts[CacheResult.DIRECT],
                "bytes": self.cache.bytes,
                "budget": self.cache.budget,
            },
            "connections": {name: len(acceptor) for name, acceptor in self.acceptors.items()},
            "max_clients": self.config.serve.max_clients,
            "cloning": [repo.name for repo in self.repos if self.scheduler.health(repo.id).cloning],
        }

    def public_url(self, listener: str) -> str | None:
        """What guests call a listener: the configured public address, else where it listens."""
        configured = {"git": self.config.serve.public_git, "http": self.config.serve.public_http}.get(listener)
        return (configured or self.urls[listener]) if self.urls[listener] else None
