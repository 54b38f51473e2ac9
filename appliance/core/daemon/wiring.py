"""Which room subscribes to which event. The rooms do not know each other."""

from __future__ import annotations

import logging

from appliance.core.daemon.allowed_repos import AllowedRepos
from appliance.core.daemon.registry_follower import RegistryFollower
from appliance.core.daemon.shared_registry import SharedRegistry
from appliance.core.events.bus import EventBus
from appliance.core.events.facts import (
    AllowedRepoExpired,
    ConditionChanged,
    DamageSuspected,
    FetchBegan,
    FetchEnded,
    MirrorHealed,
    PushesSwitched,
    PushRuled,
    RefreshEnded,
    RefsMoved,
    RegistryChanged,
    RepoEvent,
    SessionsEnded,
    TurnRecorded,
)
from appliance.core.events.fleet_facts import SessionShared, TurnsArrived, TurnsBrought
from appliance.core.integrity.watch import IntegrityWatch
from appliance.core.lfs.objects import LfsObjects
from appliance.core.maintenance.maintainer import Maintainer
from appliance.core.observability.compose import Observing
from appliance.core.observability.event_stream import EventStream
from appliance.core.recording.compose import Recording
from appliance.core.refresh.compose import Refreshing
from appliance.core.serving.compose import Fetching
from appliance.core.serving.fetch.engine import ShapeAsked
from appliance.core.workspace.disk.disks import Disks
from appliance.core.workspace.snapshots import Snapshots

log = logging.getLogger(__name__)


def subscribe(
    bus: EventBus,
    stream: EventStream,
    refreshing: Refreshing,
    recording: Recording,
    workspaces: Snapshots,
    disks: Disks,
    lfs: LfsObjects,
    maintainer: Maintainer,
    observing: Observing,
    fetching: Fetching,
    follower: RegistryFollower,
    integrity: IntegrityWatch,
    allowed: AllowedRepos,
    shared: SharedRegistry,
) -> None:
    """Subscribes every room. Ended refreshes and fetches reach the stream through the queues that store them."""
    metrics, monitor, count = observing.metrics, observing.monitor, recording.count

    def hide_old_refs(event: RepoEvent) -> None:
        fetching.refs.invalidate(event.repo.id)

    def drop_responses(event: RepoEvent) -> None:
        fetching.cache.evict(event.repo.id)

    def warm(event: RepoEvent) -> None:
        fetching.warmer.warm(event.repo)

    def build_snapshot(event: RepoEvent) -> None:
        workspaces.refresh(event.repo)

    def build_dependents(event: RepoEvent) -> None:
        for repo in workspaces.modules.depends_on(event.repo):
            workspaces.refresh(repo)

    def reconsider_modules(_: object) -> None:
        for repo in workspaces.modules.changed():
            workspaces.refresh(repo)

    def build_disks(event: RepoEvent) -> None:
        disks.refresh(event.repo)

    def mark_for_repack(event: RepoEvent) -> None:
        maintainer.mark(event.repo.name)

    def catch_up(event: RepoEvent) -> None:
        # The database does not know the upstream's branches, so lost ones come back with a refresh.
        refreshing.scheduler.nudge(event.repo)

    def forget(event: RegistryChanged) -> None:
        for repo in event.gone:
            fetching.warmer.forget(repo.id)
            fetching.cache.evict(repo.id)
            workspaces.forget(repo)
            disks.forget(repo)
            lfs.forget(repo)

    on = bus.subscribe
    on(RefsMoved, hide_old_refs, mark_for_repack, warm, build_snapshot, build_disks, integrity.moved)
    # After `hide_old_refs`, so that whoever fetches because of this event gets the new refs.
    on(RefsMoved, stream.publish)
    on(RefreshEnded, metrics.refreshed, follower.reconsider, monitor.refreshed, refreshing.announcements.refreshed)
    on(RefreshEnded, integrity.refreshed, allowed.refreshed, observing.figures.refreshed)
    on(RefsMoved, build_dependents)
    on(MirrorHealed, build_dependents)
    # After `forget`, and after `follower.reconsider`, which may have opened the catalog.
    on(RefreshEnded, reconsider_modules)
    on(FetchBegan, stream.publish)
    on(ShapeAsked, fetching.warmer.saw)
    on(FetchEnded, metrics.fetched, observing.figures.hydrated, observing.fetches.add, _log_fetch)
    on(PushRuled, metrics.ruled, stream.publish)
    on(TurnRecorded, hide_old_refs, mark_for_repack, count.changed, stream.publish)
    on(TurnsBrought, hide_old_refs, mark_for_repack, recording.index.brought)
    on(SessionsEnded, hide_old_refs, drop_responses, warm, mark_for_repack, count.changed, integrity.sessions_ended)
    on(SessionsEnded, allowed.recordings_ended)
    on(TurnsArrived, count.changed, stream.publish)
    on(SessionShared, stream.publish)
    on(AllowedRepoExpired, stream.publish)
    on(DamageSuspected, integrity.suspected)
    # Responses from a damaged mirror are dropped, because git copies packed objects without checking them.
    on(MirrorHealed, hide_old_refs, drop_responses, warm, build_snapshot, build_disks, mark_for_repack, catch_up)
    on(MirrorHealed, recording.index.healed, metrics.healed, monitor.healed, stream.publish)
    on(ConditionChanged, stream.publish)
    on(PushesSwitched, stream.publish)
    on(RegistryChanged, forget, monitor.follow, integrity.follow)
    on(RegistryChanged, reconsider_modules, shared.changed)


def _log_fetch(event: FetchEnded) -> None:
    fetch = event.fetch
    log.debug("%s: %s (%s) to %s in %.3fs", fetch.repo, fetch.shape, fetch.way, fetch.client, fetch.seconds)
