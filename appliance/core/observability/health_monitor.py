"""Watches the condition of every repository, and tells the feed and the alerts when it changes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from appliance.core.models import UNHEALTHY, Repo, State
from appliance.core.observability.alerts import Alerts
from appliance.core.observability.event_stream import EventStream
from appliance.core.observability.transitions import Condition, condition_document, condition_of, events_between
from appliance.core.refresh.scheduler import Scheduler

LOOK_EVERY = 2.0
"""Seconds until it is noticed that a repository became stale by nothing but time."""


class HealthMonitor:
    """Looks at all repositories every LOOK_EVERY seconds, and at one when its refresh has ended.

    After a start, what serve was not there to verify is no news: each is judged once it was tried, or could have been
    for `stale_after` seconds.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        feed: EventStream,
        alerts: Alerts,
        repos: Callable[[], list[Repo]],
        stale_after: Callable[[], float],
    ) -> None:
        self._scheduler = scheduler
        self._feed = feed
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

    def refreshed(self, repo: Repo) -> None:
        """A refresh has ended, well or not."""
        self._tried.add(repo.id)
        self._look_at(repo)

    def look(self) -> None:
        """At all that are enabled; the others are forgotten."""
        enabled = {repo.id: repo for repo in self._repos() if repo.enabled}
        for gone in self._conditions.keys() - enabled.keys():
            del self._conditions[gone]
            self._since.pop(gone, None)
            self._tried.discard(gone)
        self._alerts.keep(enabled.keys())
        for repo in enabled.values():
            self._look_at(repo)

    def _look_at(self, repo: Repo) -> None:
        stale_after = self._stale_after()
        if repo.id not in self._tried and time.monotonic() - self._began <= stale_after:
            return
        now, health = time.time(), self._scheduler.health(repo.id)
        before, after = self._conditions.get(repo.id), condition_of(repo, health, now, stale_after)
        self._conditions[repo.id] = after
        if before is None or before.state is not after.state:
            self._since[repo.id] = now
        since, asking_for = self._since[repo.id], self._scheduler.asking_for(repo.id)
        for event in events_between(before, after):
            facts = condition_document(event, repo, health, after.state, now, since, asking_for)
            self._feed.publish(event, repo.name, **{k: v for k, v in facts.items() if k not in ("event", "at", "repo")})
        if after.state in UNHEALTHY or after.state is State.FRESH:
            self._alerts.consider(repo, health, after.state, now, since, asking_for)
