"""Watches the condition of every repository, publishes each change, and passes conditions to the alerts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from appliance.core.events.facts import MirrorHealed, Publish, RefreshEnded, RegistryChanged
from appliance.core.models import ALLOWED, UNHEALTHY, Health, Repo, State
from appliance.core.observability.alerts import Alerts
from appliance.core.observability.transitions import (
    Condition,
    condition_changed,
    condition_of,
    events_between,
    losses_document,
)
from appliance.core.refresh.scheduler import Scheduler

LOOK_EVERY = 2.0
"""Seconds between two looks at all repositories, because one can become stale without any refresh ending."""


class HealthMonitor:
    """Looks at all repositories every LOOK_EVERY seconds, and at one of them when its refresh has ended.

    Lag from before the start is not news, because `serve` was not running. A repository is judged only after its first
    refresh has ended, or `stale_after` seconds after the start.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        publish: Publish,
        alerts: Alerts,
        repos: Callable[[], list[Repo]],
        stale_after: Callable[[], float],
    ) -> None:
        self._scheduler = scheduler
        self._publish = publish
        self._alerts = alerts
        self._repos = repos
        self._stale_after = stale_after
        self._conditions: dict[int, Condition] = {}
        self._since: dict[int, float] = {}
        self._tried: set[int] = set()
        self._began = time.monotonic()

    async def run(self) -> None:
        """The loop; ends by being cancelled."""
        await self._alerts.load()
        while True:
            self.look()
            await asyncio.sleep(LOOK_EVERY)

    def refreshed(self, event: RefreshEnded) -> None:
        """Looks at a repository whose refresh has ended. It is judged from now on."""
        self._tried.add(event.repo.id)
        self._look_at(event.repo, event.health, 0.0)

    def healed(self, event: MirrorHealed) -> None:
        """Looks at a repository whose mirror was healed, and has an alert sent that names what is lost."""
        repo, health = event.repo, self._scheduler.health(event.repo.id)
        self._tried.add(repo.id)
        self._look_at(repo, health, 0.0)
        if event.loses_more:
            self._alerts.consider_losses(repo, losses_document(event, health, self._stale_after()))

    def follow(self, event: RegistryChanged) -> None:
        """Looks at all repositories after the registry changed."""
        self.look()

    def look(self) -> None:
        """Looks at all enabled repositories and forgets the others."""
        enabled = {repo.id: repo for repo in self._repos() if repo.enabled}
        for gone in self._conditions.keys() - enabled.keys():
            del self._conditions[gone]
            self._since.pop(gone, None)
            self._tried.discard(gone)
        self._alerts.keep(enabled.keys())
        for repo in enabled.values():
            run = self._scheduler.run_of(repo.id)
            self._look_at(repo, self._scheduler.health(repo.id), time.monotonic() - run.since if run else 0.0)

    def _look_at(self, repo: Repo, health: Health, asking_for: float) -> None:
        stale_after = self._stale_after()
        if repo.id not in self._tried and time.monotonic() - self._began <= stale_after:
            return
        if repo.source == ALLOWED and not health.cloned:
            # Nobody registered it, and it is unregistered again if its first clone fails.
            return
        now = time.time()
        before, after = self._conditions.get(repo.id), condition_of(repo, health, now, stale_after)
        self._conditions[repo.id] = after
        if before is None or before.state is not after.state:
            self._since[repo.id] = now
        since = self._since[repo.id]
        for condition in events_between(before, after):
            self._publish(condition_changed(condition, repo, health, after.state, now, since, asking_for))
        if after.state in UNHEALTHY or after.state is State.FRESH:
            self._alerts.consider(repo, health, after.state, now, since, asking_for)
