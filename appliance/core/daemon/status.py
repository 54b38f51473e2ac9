"""What a running `serve` reports about itself: `status`, the live view's pulse, and the status line for systemd."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from appliance.core.backup.schedule import Backups
from appliance.core.daemon.guest_registry import GuestRegistry
from appliance.core.daemon.state import LISTENERS, ServeState
from appliance.core.daemon.storage import StorageReport
from appliance.core.fleet.report import FleetReport
from appliance.core.git.mirrors import Mirrors
from appliance.core.health import followed_branch, lag_of, state_of
from appliance.core.lfs.objects import LfsObjects
from appliance.core.models import UNHEALTHY, Health, Repo
from appliance.core.observability.compose import Observing
from appliance.core.observability.report import repo_documents, status_document
from appliance.core.process.disk import disk_complaint
from appliance.core.recording.compose import Recording
from appliance.core.recording.hook_guard import OFF
from appliance.core.refresh.scheduler import Scheduler
from appliance.core.serving.compose import Fetching, Ports
from appliance.core.serving.fetch.cached_response import CacheResult
from appliance.core.serving.ports.admin_routes import AdminRoutes
from appliance.core.units import format_duration
from appliance.core.workspace.snapshots import Snapshots

_PULSE_ONLY = frozenset({"connections", "max_clients", "cloning", "clones"})


@dataclass(frozen=True)
class Status:
    """Reads the rooms at each call."""

    state: ServeState
    mirrors: Mirrors
    scheduler: Scheduler
    recording: Recording
    workspaces: Snapshots
    observing: Observing
    fetching: Fetching
    ports: Ports
    admin: AdminRoutes
    backups: Backups
    storage: StorageReport
    guests: GuestRegistry
    lfs: LfsObjects
    fleet: FleetReport

    async def status(self) -> dict[str, Any]:
        """The document that `status --json` prints."""
        pulse, state = await self.pulse(), self.state
        live = {key: pulse[key] for key in pulse if key not in _PULSE_ONLY}
        live["warmed"] = {repo.name: self.fetching.warmer.state(repo.id) for repo in state.repos}
        head = live.pop("audit_head")
        document = status_document(state.repos, self._healths(), state.config, time.time(), audit_head=head, live=live)
        # Nothing is awaited before this, because a repository that guests brought may end meanwhile.
        self._add_lacks(document["repos"], state.repos)
        repos = state.privacy.told(document["repos"])
        return document | {"repos": repos, "storage": await self.storage.short()}

    def _add_lacks(self, documents: list[dict[str, Any]], repos: Iterable[Repo]) -> None:
        """Adds to the documents of these repositories the submodules that each one's followed branch lacks."""
        by_name = {repo.name: repo for repo in repos}
        for document in documents:
            repo = by_name[document["name"]]
            branch = followed_branch(repo, self.scheduler.health(repo.id))
            document["lacks"] = self.workspaces.modules.lacks(repo, branch)

    async def pulse(self) -> dict[str, Any]:
        """What only a running `serve` knows, without the repositories, so that it can be read every second.

        It has keys of `status`, and also `connections` by listener, `max_clients`, the names of repositories that are
        `cloning`, and how far each of these is (`clones`).
        """
        state, cache = self.state, self.fetching.cache
        push_watch = self.observing.push_watch
        off = await push_watch.look()
        cloning = [repo for repo in state.repos if self.scheduler.health(repo.id).cloning]
        runs = {repo.name: self.scheduler.run_of(repo.id) for repo in cloning}
        return {
            "serving": True,
            "pid": os.getpid(),
            **{name: state.public_url(name) for name in LISTENERS},
            "listeners": {name: list(addresses) for name, addresses in state.listening.items()},
            "clients": len(self.ports.guests),
            "audit_head": push_watch.audit_head,
            "pushes": push_watch.document(),
            "warnings": [*state.problems, *state.overruled, *([off.warning] if off else []), *self._complaints()],
            "cache": {
                "hits": cache.counts[CacheResult.HIT],
                "misses": cache.counts[CacheResult.MISS],
                "joined": cache.counts[CacheResult.JOINED],
                "direct": cache.counts[CacheResult.DIRECT],
                "bytes": cache.bytes,
                "budget": cache.budget,
            },
            "backup": self.backups.document(),
            "fleet": self.fleet.short(),
            "connections": self.ports.connections(),
            "max_clients": state.config.serve.max_clients,
            "cloning": list(runs),
            "clones": {name: run.document() for name, run in runs.items() if run is not None},
        }

    def _complaints(self) -> list[str]:
        """Warnings about everything else that is wrong."""
        state, lost = self.state, self.state.registry_lost
        complaints = [
            *self.admin.complaints(),
            self.observing.alerts.trouble,
            self.fetching.cache.trouble,
            self.workspaces.trouble if state.keeps_snapshots() else None,
            self.lfs.stock.trouble if self.lfs.is_on else None,
            disk_complaint(state.layout.state),
            self.storage.budget.trouble,
            f"the registry cannot be read, so the config's list and every mirror on disk are served: {lost.message}"
            if lost
            else None,
            self.recording.found.trouble(),
            self.recording.time.trouble(),
            self.backups.trouble(),
            self._awaiting(),
            *(self.workspaces.complaints() if state.keeps_snapshots() else []),
            self.guests.trouble(),
            *self.fleet.complaints(),
        ]
        return [complaint for complaint in complaints if complaint]

    def _awaiting(self) -> str | None:
        """The warning about mirrors that were restored with their sessions, but without the upstream's branches."""
        names = [
            repo.name
            for repo in self.state.repos
            if not self.scheduler.health(repo.id).cloned and self.mirrors(repo.name).awaits_upstream()
        ]
        if not names:
            return None
        more = f" and {len(names) - 10} more" if len(names) > 10 else ""
        return (
            f"restored from a backup and not served before their first refresh: {', '.join(names[:10])}{more}; "
            "their sessions can be read"
        )

    def repo_documents(self, repos: list[Repo] | None = None) -> list[dict[str, Any]]:
        """The registry, or some of its repositories, as `repos --json` prints them."""
        chosen = self.state.repos if repos is None else repos
        return self.state.privacy.told(repo_documents(chosen, self._healths(), self.state.config, time.time()))

    def repo_whole(self, repo: Repo) -> dict[str, Any]:
        """One repository, with what `status --json` and `repos --json` print of it."""
        health = {repo.id: self.scheduler.health(repo.id)}
        [status] = status_document([repo], health, self.state.config, time.time(), audit_head=None)["repos"]
        self._add_lacks([status], [repo])
        return {**status, **self.repo_documents([repo])[0]}

    def summary(self) -> str:
        """The line that `systemctl status` shows: counts, and the repository in the worst state."""
        counts = Counter(document["state"] for document in self.repo_documents())
        states = ", ".join(f"{count} {state}" for state, count in sorted(counts.items())) or "none registered"
        reason = self.observing.push_watch.off
        off = f"; {OFF}: {reason.words}" if reason else ""
        return f"{len(self.ports.guests)} guests; repositories: {states}{self._worst()}{off}"

    def _worst(self) -> str:
        """The unhealthy repository to look at first: by its state, then the longest lag."""
        now, unhealthy = time.time(), []
        for repo in self.state.repos:
            health = self.scheduler.health(repo.id)
            state = state_of(repo, health, now, self.state.stale_after())
            if state in UNHEALTHY:
                lag = lag_of(health, now)
                unhealthy.append((-UNHEALTHY.index(state), math.inf if lag is None else lag, repo, state, health))
        if not unhealthy:
            return ""
        _, lag, repo, state, health = max(unhealthy, key=lambda entry: entry[:2])
        details = [str(state), *([health.error_kind] if health.error_kind else [])]
        behind = "never verified" if lag == math.inf else f"{format_duration(lag)} behind"
        return f"; worst: {repo.name} ({', '.join([*details, behind])})"

    def _healths(self) -> dict[int, Health]:
        return {repo.id: self.scheduler.health(repo.id) for repo in self.state.repos}
