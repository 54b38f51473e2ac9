"""Builds the parts that report the condition of one `serve` to operators and platforms."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from appliance.core.config.settings import AlertsConfig
from appliance.core.errors import GitmirrorError
from appliance.core.events.facts import FetchEnded, Publish
from appliance.core.layout import Layout
from appliance.core.models import Repo
from appliance.core.observability.alerts import Alerts
from appliance.core.observability.event_sinks import Begin, EventSinks
from appliance.core.observability.event_stream import EventStream
from appliance.core.observability.figures import FigureSampler
from appliance.core.observability.health_monitor import HealthMonitor
from appliance.core.observability.metrics import Metrics
from appliance.core.observability.push_watch import PushWatch
from appliance.core.process.children import Children
from appliance.core.process.disk import disk_gauges
from appliance.core.recording.compose import Recording
from appliance.core.refresh.scheduler import Scheduler
from appliance.core.store.stores import Stores
from appliance.core.store.write_behind import WriteBehind

PACE = 0.4
"""Seconds that a finished fetch waits before it is stored, in one batch with others that finish meanwhile."""


@dataclass(frozen=True)
class Observing:
    """The parts that other rooms use."""

    sinks: EventSinks
    fetches: WriteBehind[FetchEnded]
    figures: FigureSampler
    metrics: Metrics
    alerts: Alerts
    monitor: HealthMonitor
    push_watch: PushWatch

    @property
    def loops(self) -> Mapping[str, Callable[[], Coroutine[Any, Any, None]]]:
        """The loops that run as long as `serve`, by name."""
        return {
            "activity": self.fetches.run,
            "figures": self.figures.run,
            "health monitor": self.monitor.run,
            "alerts": self.alerts.run,
            "watch on pushes": self.push_watch.run,
        }

    async def write_last(self) -> None:
        """Stores what still waits, when everything that could add to it has stopped."""
        await self.fetches.write()
        await self.figures.write()


def compose_observing(
    layout: Layout,
    stores: Stores,
    children: Children,
    scheduler: Scheduler,
    recording: Recording,
    repos: Callable[[], list[Repo]],
    stale_after: Callable[[], float],
    alert_settings: Callable[[], AlertsConfig],
    mend: Callable[[GitmirrorError], str],
    stream: EventStream,
    publish: Publish,
    begin: Begin,
) -> Observing:
    """Builds the parts. They read the health of `repos` from `scheduler`, and the condition of pushes from `recording`.

    `stale_after` and `alert_settings` are called whenever their value is needed. `mend` says what to do about an error.
    """

    def record(events: Sequence[FetchEnded]) -> None:
        stores.activity.record([(event.at, event.fetch) for event in events])

    metrics = Metrics(repos, scheduler.health, stale_after)
    alerts = Alerts(stores.alerts, children, alert_settings, layout.pushes_told)
    push_watch = PushWatch(recording.guard, recording.pushes, stores.audit, publish, alerts, mend)
    metrics.add_gauges(push_watch.gauges, partial(disk_gauges, layout.state))
    return Observing(
        EventSinks(stream, children, begin),
        WriteBehind("hydrations", record, PACE, stream.publish),
        FigureSampler(stores.figures, time.time),
        metrics,
        alerts,
        HealthMonitor(scheduler, publish, alerts, repos, stale_after),
        push_watch,
    )
