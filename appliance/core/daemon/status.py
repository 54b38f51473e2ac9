"""What a running `serve` tells of itself: `status`, the pulse of the live view, systemd's line."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from appliance.core.daemon.state import LISTENERS, ServeState
from appliance.core.errors import GitmirrorError
from appliance.core.health import lag_of, state_of
from appliance.core.models import UNHEALTHY, Health, Repo, State
from appliance.core.observability.alerts import Alerts
from appliance.core.observability.report import repo_documents, status_document
from appliance.core.recording.compose import Recording
from appliance.core.refresh.scheduler import Scheduler
from appliance.core.serving.compose import Fetching, Ports
from appliance.core.serving.fetch.response_cache import CacheResult
from appliance.core.serving.ports.admin_routes import AdminRoutes
from appliance.core.store.audit import AuditLog
from appliance.core.store.database import StoreError
from appliance.core.units import format_duration

_PULSE_ONLY = frozenset({"connections", "max_clients", "cloning"})


@dataclass(frozen=True)
class Status:
    """Looks at the rooms when it is asked."""

    state: ServeState
    scheduler: Scheduler
    recording: Recording
    audit: AuditLog
    fetching: Fetching
    ports: Ports
    admin: AdminRoutes
    alerts: Alerts

    async def status(self) -> dict[str, Any]:
        """The contract's `status`."""
        pulse, state = await self.pulse(), self.state
        live = {key: pulse[key] for key in pulse if key not in _PULSE_ONLY}
        live["warmed"] = {repo.name: self.fetching.warmer.state(repo.id) for repo in state.repos}
        head = live.pop("audit_head")
        found = status_document(state.repos, self._healths(), state.config, time.time(), audit_head=head, live=live)
        return found | {"repos": state.privacy.told(found["repos"])}

    async def pulse(self) -> dict[str, Any]:
        """What only a running serve knows, without the repositories: it may be asked for every second.

        Besides keys of `status`: `connections` by listener, `max_clients`, and the names that are `cloning`.
        """
        state, cache = self.state, self.fetching.cache
        audit_head, pushes_off = await self._audit_head()
        return {
            "serving": True,
            "pid": os.getpid(),
            **{name: state.public_url(name) for name in LISTENERS},
            "clients": len(self.ports.guests),
            "audit_head": audit_head,
            "pushes": {"accepted": self.recording.pushes.accepted, "rejected": self.recording.pushes.rejected},
            "warnings": [*state.problems, *pushes_off, *self._complaints()],
            "cache": {
                "hits": cache.counts[CacheResult.HIT],
                "misses": cache.counts[CacheResult.MISS],
                "joined": cache.counts[CacheResult.JOINED],
                "direct": cache.counts[CacheResult.DIRECT],
                "bytes": cache.bytes,
                "budget": cache.budget,
            },
            "connections": {name: len(acceptor) for name, acceptor in self.ports.acceptors.items()},
            "max_clients": state.config.serve.max_clients,
            "cloning": [repo.name for repo in state.repos if self.scheduler.health(repo.id).cloning],
        }

    async def _audit_head(self) -> tuple[str | None, list[str]]:
        """The head of the log, if it can be read, and why pushes are off."""
        head, off = None, []
        try:
            # A push may be waiting for the database just now; the loop must not wait with it.
            head = await asyncio.to_thread(self.audit.head)
        except StoreError as error:
            off.append(f"pushes are off: {error.message}")
        try:
            self.recording.guard.check()
        except GitmirrorError as error:
            off.append(error.message)
        return head, off

    def _complaints(self) -> list[str]:
        """What is wrong besides, in words."""
        return [complaint for complaint in (*self.admin.complaints(), self.alerts.trouble) if complaint]

    def repo_documents(self, repos: list[Repo] | None = None) -> list[dict[str, Any]]:
        """The registry, or some of it, as `repos --json` has it."""
        chosen = self.state.repos if repos is None else repos
        return self.state.privacy.told(repo_documents(chosen, self._healths(), self.state.config, time.time()))

    def summary(self) -> str:
        """The line that `systemctl status` shows: counts, and the repository that needs somebody most."""
        counts = Counter(document["state"] for document in self.repo_documents())
        states = ", ".join(f"{count} {state}" for state, count in sorted(counts.items())) or "none registered"
        broken = self.recording.guard.broken
        off = f"; pushes are off: {broken}" if broken else ""
        return f"{len(self.ports.guests)} guests; repositories: {states}{self._worst()}{off}"

    def _worst(self) -> str:
        """Failing before stale, and then what has lagged for longest."""
        now, unwell = time.time(), []
        for repo in self.state.repos:
            health = self.scheduler.health(repo.id)
            state = state_of(repo, health, now, self.state.stale_after())
            if state in UNHEALTHY:
                lag = lag_of(health, now)
                unwell.append((state is State.FAILING, math.inf if lag is None else lag, repo, state, health))
        if not unwell:
            return ""
        _, lag, repo, state, health = max(unwell, key=lambda each: each[:2])
        told = [str(state), *([health.error_kind] if health.error_kind else [])]
        behind = "never verified" if lag == math.inf else f"{format_duration(lag)} behind"
        return f"; worst: {repo.name} ({', '.join([*told, behind])})"

    def _healths(self) -> dict[int, Health]:
        return {repo.id: self.scheduler.health(repo.id) for repo in self.state.repos}
