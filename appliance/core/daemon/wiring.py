"""Which room listens for which event. The rooms do not know each other."""

from __future__ import annotations

import logging

from appliance.core.daemon.live import Live
from appliance.core.events import (
    ConditionChanged,
    FetchBegan,
    FetchEnded,
    PushRuled,
    RefreshEnded,
    RefsMoved,
    RegistryChanged,
    RepoEvent,
    SessionsEnded,
    TurnRecorded,
)
from appliance.core.maintenance.maintainer import Maintainer
from appliance.core.observability.event_bus import EventBus
from appliance.core.observability.event_stream import EventStream
from appliance.core.observability.health_monitor import HealthMonitor
from appliance.core.observability.metrics import Metrics
from appliance.core.recording.session_count import SessionCount
from appliance.core.refresh.announcements import Announcements
from appliance.core.serving.fetch.engine import ShapeAsked
from appliance.core.store.write_behind import WriteBehind

log = logging.getLogger(__name__)


def subscribe(
    bus: EventBus,
    stream: EventStream,
    live: Live,
    maintainer: Maintainer,
    metrics: Metrics,
    fetches: WriteBehind[FetchEnded],
    monitor: HealthMonitor,
    announcements: Announcements,
    sessions: SessionCount,
) -> None:
    """Refreshes and fetches reach the stream by way of what writes them to the database."""

    def hide_old_refs(event: RepoEvent) -> None:
        live.snapshots.invalidate(event.repo.id)

    def warm(event: RepoEvent) -> None:
        live.warmer.warm(event.repo)

    def mark(event: RepoEvent) -> None:
        maintainer.mark(event.repo.name)

    def build_snapshot(event: RepoEvent) -> None:
        live.workspaces.refresh(event.repo)

    def drop_answers(event: RepoEvent) -> None:
        live.cache.evict(event.repo.id)

    def reconsider(event: RefreshEnded) -> None:
        live.reconsider(event.repo.id)

    def saw_shape(event: ShapeAsked) -> None:
        live.warmer.saw(event.repo, event.shape)

    bus.subscribe(RefsMoved, hide_old_refs, mark, warm, build_snapshot)
    bus.subscribe(RefreshEnded, metrics.refreshed, reconsider, monitor.refreshed, announcements.refreshed)
    bus.subscribe(FetchBegan, stream.publish)
    bus.subscribe(ShapeAsked, saw_shape)
    bus.subscribe(FetchEnded, metrics.fetched, fetches.add, _log_fetch)
    bus.subscribe(PushRuled, metrics.ruled, stream.publish)
    bus.subscribe(TurnRecorded, hide_old_refs, mark, sessions.changed, stream.publish)
    bus.subscribe(SessionsEnded, hide_old_refs, drop_answers, warm, mark, sessions.changed)
    bus.subscribe(ConditionChanged, stream.publish)
    bus.subscribe(RegistryChanged, monitor.follow)


def _log_fetch(event: FetchEnded) -> None:
    fetch = event.fetch
    log.debug("%s: %s (%s) to %s in %.3fs", fetch.repo, fetch.shape, fetch.way, fetch.client, fetch.seconds)
