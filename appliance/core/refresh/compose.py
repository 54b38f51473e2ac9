"""Builds the parts of one `serve` that refresh mirrors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from appliance.core.config.settings import RefreshConfig
from appliance.core.events.facts import Event, Publish, RefreshEnded
from appliance.core.git.keyring import Keyring
from appliance.core.git.mirrors import Mirrors
from appliance.core.refresh.announcements import Announcements, Begin
from appliance.core.refresh.health_notes import HealthNotes
from appliance.core.refresh.refresher import Refresher
from appliance.core.refresh.scheduler import Scheduler, Settings
from appliance.core.refresh.sources import SourceOf, upstream_alone
from appliance.core.store.health import HealthStore
from appliance.core.store.write_behind import WriteBehind

PACE = 0.8
"""Seconds for which a refresh that found nothing new waits to be stored. A kill that loses it does no harm."""


@dataclass(frozen=True)
class Refreshing:
    """The parts that other rooms use."""

    refresher: Refresher
    history: WriteBehind[RefreshEnded]
    scheduler: Scheduler
    notes: HealthNotes
    announcements: Announcements


def compose_refreshing(
    mirrors: Mirrors,
    config: RefreshConfig,
    keyring: Keyring,
    store: HealthStore,
    publish: Publish,
    publish_stored: Callable[[Event], None],
    begin: Begin,
    on_pass: Callable[[], None],
    source_of: SourceOf = upstream_alone,
) -> Refreshing:
    """Builds the parts. A refresh that ended goes to `publish` at once, and to `publish_stored` once it is stored.

    `source_of` says where refreshes get what the upstream has.
    """

    def record(events: Sequence[RefreshEnded]) -> None:
        store.record_refreshes([(event.repo.id, event.outcome, event.learnt) for event in events])

    refresher = Refresher(mirrors.layout, mirrors.git, mirrors.locks, keyring, timeout=config.timeout)
    history: WriteBehind[RefreshEnded] = WriteBehind("refreshes", record, PACE, publish_stored)
    settings = Settings(config.interval, config.concurrency)
    scheduler = Scheduler(source_of(refresher), settings, history, publish, on_pass)
    announcements = Announcements(scheduler, mirrors, begin)
    return Refreshing(refresher, history, scheduler, HealthNotes(scheduler, store), announcements)
