"""What one room's news means to the others: the wiring between rooms that do not know each other."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import asdict
from typing import Any

from appliance.core.daemon.live import Live
from appliance.core.errors import GitmirrorError
from appliance.core.maintenance.maintainer import Maintainer
from appliance.core.models import Hydration, PushDecision, Recorded, RefreshOutcome, RefsMoved, Repo
from appliance.core.observability.event_stream import EventStream
from appliance.core.observability.health_monitor import HealthMonitor
from appliance.core.observability.metrics import Metrics
from appliance.core.recording.policy import session_of
from appliance.core.refresh.announcements import Announcements
from appliance.core.serving.fetch.engine import Caller
from appliance.core.serving.wire.v2 import FetchShape
from appliance.core.store.database import StoreError
from appliance.core.store.write_behind import WriteBehind
from appliance.core.text import storable

log = logging.getLogger(__name__)

MOST_TOLD = 100
"""Refs of one refresh that its event names."""

Begin = Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]]


class Events:
    """Handlers of every event. The rooms get them before they exist themselves; `attach` closes the circle."""

    live: Live
    maintainer: Maintainer
    metrics: Metrics
    activity: WriteBehind[tuple[float, Hydration]]
    refreshes: WriteBehind[tuple[int, RefreshOutcome, Mapping[str, Any]]]
    vigil: HealthMonitor
    announcements: Announcements

    def __init__(self, begin: Begin) -> None:
        self.begin = begin
        self.feed = EventStream()
        self._recounts: dict[int, bool] = {}

    def attach(
        self,
        live: Live,
        maintainer: Maintainer,
        metrics: Metrics,
        activity: WriteBehind[tuple[float, Hydration]],
        refreshes: WriteBehind[tuple[int, RefreshOutcome, Mapping[str, Any]]],
        vigil: HealthMonitor,
        announcements: Announcements,
    ) -> None:
        """Names the rooms; before it no event may happen."""
        self.live = live
        self.maintainer = maintainer
        self.metrics = metrics
        self.activity = activity
        self.refreshes = refreshes
        self.vigil = vigil
        self.announcements = announcements

    async def refreshed(self, repo_id: int, outcome: RefreshOutcome, /, **columns: Any) -> None:
        """A refresh ended: counted, and written behind."""
        self.metrics.refreshed(outcome)
        self.feed.publish(
            "refreshed",
            outcome.repo,
            result=outcome.result,
            seconds=outcome.duration,
            moved=[change.document() for change in outcome.moved[:MOST_TOLD]],
            error=outcome.error,
            kind=outcome.kind,
        )
        self.refreshes.add((repo_id, outcome, columns))
        if outcome.asked or outcome.result != "unchanged":
            # What moved, failed or is waited for is stored before anybody is told, if it can be.
            await self.refreshes.write()
        self.live.reconsider(repo_id)

    def refresh_done(self, repo: Repo) -> None:
        """A refresh ended, and everything that follows from it was begun."""
        self.vigil.refreshed(repo)
        self.announcements.refreshed(repo)

    async def moved(self, event: RefsMoved) -> None:
        """A refresh moved refs: no guest sees the old ones from here on, and the new tip is warmed."""
        self.live.snapshots.invalidate(event.repo.id)
        self.maintainer.mark(event.repo.name)
        self.live.warmer.warm(event.repo)
        self.live.workspaces.refresh(event.repo)

    def ruled(self, ruling: PushDecision) -> None:
        """A push was ruled on."""
        self.metrics.ruled(ruling.accepted)
        self.feed.publish(
            "pushed",
            ruling.repo.name,
            verdict="accepted" if ruling.accepted else "rejected",
            refs=[storable(command.ref) for command in ruling.commands],
            reason=next(iter(ruling.refusals.values()), None),
            client=ruling.client,
        )

    async def recorded(self, event: Recorded) -> None:
        """A push moved refs; its guest is told so after this."""
        self.live.snapshots.invalidate(event.repo.id)
        self.maintainer.mark(event.repo.name)
        self._recount(event.repo)
        for change in event.changes:
            session = session_of(change.ref)
            self.feed.publish("recorded", event.repo.name, session=session, **change.document(), client=event.client)

    async def sessions_ended(self, repo: Repo) -> None:
        """Sessions were ended or archived: their refs are shown no more, and no answer holds them."""
        self.live.snapshots.invalidate(repo.id)
        self.live.cache.evict(repo.id)
        self.live.warmer.warm(repo)
        self.maintainer.mark(repo.name)
        self._recount(repo)

    def hydrating(self, repo: Repo, want: str, shape: str, caller: Caller) -> None:
        """A guest asked for objects, and gets them from now on."""
        self.feed.publish(
            "hydrating", repo.name, want=want, shape=shape, client=caller.client, protocol=caller.protocol
        )

    def hydrated(self, event: Hydration) -> None:
        """A guest got its objects, or gave up."""
        self.metrics.hydrated(event)
        self.activity.add((time.time(), event))
        if self.feed.is_watched:
            self.feed.publish("hydrated", event.repo, **{k: v for k, v in asdict(event).items() if k != "repo"})
        log.debug("%s: %s (%s) to %s in %.3fs", event.repo, event.shape, event.way, event.client, event.seconds)

    def saw_shape(self, repo: Repo, shape: FetchShape) -> None:
        """A guest asked for a shape that may be kept."""
        self.live.warmer.saw(repo, shape)

    async def update_health(self, repo_id: int, **columns: Any) -> None:
        """Something was learnt of a mirror: known at once, written behind."""
        self.live.scheduler.note(repo_id, **columns)
        try:
            await asyncio.to_thread(self.live.stores.health.update, repo_id, **columns)
        except StoreError as error:
            log.error("the health of repository %d cannot be recorded: %s", repo_id, error.message)

    def _recount(self, repo: Repo) -> None:
        if repo.id in self._recounts:
            self._recounts[repo.id] = True
        else:
            self._recounts[repo.id] = False
            self.begin(self._count_sessions(repo), f"count {repo.name}")

    async def _count_sessions(self, repo: Repo) -> None:
        """Counts again as long as pushes come, one count at a time: fifty at once need not be counted fifty times."""
        try:
            again = True
            while again:
                self._recounts[repo.id] = False
                sessions = await asyncio.to_thread(self.live.stores.sessions.all, repo.name)
                await self.update_health(repo.id, sessions=len(sessions))
                again = self._recounts[repo.id]
        except GitmirrorError as error:
            log.warning("%s: sessions cannot be counted: %s", repo.name, error.message)
        finally:
            del self._recounts[repo.id]
