"""Builds what tells operators and platforms how one `serve` fares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from appliance.core.config.settings import AlertsConfig
from appliance.core.events import FetchEnded, Publish
from appliance.core.models import Repo
from appliance.core.observability.alerts import Alerts
from appliance.core.observability.event_sinks import Begin, EventSinks
from appliance.core.observability.event_stream import EventStream
from appliance.core.observability.health_monitor import HealthMonitor
from appliance.core.observability.metrics import Metrics
from appliance.core.process.children import Children
from appliance.core.refresh.scheduler import Scheduler
from appliance.core.store.activity import ActivityStore
from appliance.core.store.alerts import AlertStore
from appliance.core.store.write_behind import WriteBehind

PACE = 0.4
"""Seconds that a fetch waits to be written, with others that end meanwhile."""


@dataclass(frozen=True)
class Observing:
    """The parts that others have to do with."""

    sinks: EventSinks
    fetches: WriteBehind[FetchEnded]
    metrics: Metrics
    alerts: Alerts
    monitor: HealthMonitor


def compose_observing(
    stream: EventStream,
    publish: Publish,
    scheduler: Scheduler,
    children: Children,
    activity: ActivityStore,
    alert_store: AlertStore,
    repos: Callable[[], list[Repo]],
    stale_after: Callable[[], float],
    alert_settings: Callable[[], AlertsConfig],
    begin: Begin,
) -> Observing:
    """What is told of `repos` is by the health that `scheduler` knows."""

    def record(events: Sequence[FetchEnded]) -> None:
        activity.record([(event.at, event.fetch) for event in events])

    alerts = Alerts(alert_store, children, alert_settings)
    return Observing(
        EventSinks(stream, children, begin),
        WriteBehind("hydrations", record, PACE, stream.publish),
        Metrics(repos, scheduler.health, stale_after),
        alerts,
        HealthMonitor(scheduler, publish, alerts, repos, stale_after),
    )
