"""Builds the rooms of one `serve` bottom up and gives each what it needs, nothing more."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from appliance.core.access.api_tokens import ApiTokens
from appliance.core.access.gate import AccessGate
from appliance.core.access.known_guests import KnownGuests, reader_named
from appliance.core.access.read_tokens import ReadTokens
from appliance.core.api.compose import compose_api
from appliance.core.backup.schedule import Backups
from appliance.core.daemon.allowed_repos import AllowedRepos
from appliance.core.daemon.api_socket import api_handler
from appliance.core.daemon.budget import compose_budget
from appliance.core.daemon.fleet import Fleet, compose_fleet, compose_fleet_parts
from appliance.core.daemon.fleet_bringing import compose_bringing
from appliance.core.daemon.guest_registry import GuestRegistry
from appliance.core.daemon.on_demand import OnDemand
from appliance.core.daemon.operations import Operations
from appliance.core.daemon.registering import compose_registering
from appliance.core.daemon.registry_follower import RegistryFollower
from appliance.core.daemon.state import ADMIN, ServeState
from appliance.core.daemon.status import Status
from appliance.core.daemon.storage import StorageReport
from appliance.core.daemon.wiring import subscribe
from appliance.core.events.bus import EventBus
from appliance.core.git.command import git_environment
from appliance.core.git.complaints import Complaints
from appliance.core.git.mirrors import Mirrors
from appliance.core.integrity.compose import compose_examiner
from appliance.core.integrity.watch import IntegrityWatch
from appliance.core.lfs.objects import LfsObjects
from appliance.core.maintenance.budget import DiskBudget
from appliance.core.maintenance.maintainer import Maintainer
from appliance.core.maintenance.scrub import Scrub
from appliance.core.node.state_dir import make_git, make_keyring, open_stores
from appliance.core.observability.compose import Observing, compose_observing
from appliance.core.observability.event_sinks import Begin
from appliance.core.observability.event_stream import EventStream
from appliance.core.process.children import Children
from appliance.core.recording.attachments import LARGEST
from appliance.core.recording.compose import Recording, compose_recording
from appliance.core.refresh.compose import Refreshing, compose_refreshing
from appliance.core.serving.compose import Fetching, Ports, compose_admin_port, compose_fetching, compose_ports
from appliance.core.serving.net.acceptor import Acceptor
from appliance.core.serving.net.asgi import Application
from appliance.core.serving.net.guest_sockets import GuestSockets, SocketKeeper
from appliance.core.serving.ports.admin_routes import AdminRoutes
from appliance.core.serving.ports.freshness import Freshness
from appliance.core.serving.ports.git_daemon import GitDaemon, find_git_daemon
from appliance.core.serving.ports.guest_routes import GuestRoutes
from appliance.core.serving.ports.lfs_routes import LfsRoutes
from appliance.core.serving.ports.tar_codings import TarCodings
from appliance.core.serving.push.attachments import HttpAttachments
from appliance.core.store.stores import Stores
from appliance.core.workspace.compose import Workspaces, compose_workspaces
from appliance.core.workspace.disk.disks import Disks
from appliance.core.workspace.guest_kit import GuestKit
from appliance.core.workspace.gzipped import GzippedTars
from appliance.core.workspace.snapshots import Snapshots


@dataclass(frozen=True)
class Assembly:
    """The rooms, for the code that starts, stops and commands them."""

    state: ServeState
    stores: Stores
    mirrors: Mirrors
    stream: EventStream
    refreshing: Refreshing
    recording: Recording
    workspaces: Snapshots
    disks: Disks
    lfs: LfsObjects
    guests: GuestRegistry
    maintainer: Maintainer
    scrub: Scrub
    budget: DiskBudget
    observing: Observing
    fetching: Fetching
    daemon: GitDaemon
    read_tokens: ReadTokens
    api_tokens: ApiTokens
    ports: Ports
    follower: RegistryFollower
    backups: Backups
    integrity: IntegrityWatch
    status: Status
    operations: Operations
    api: Application
    admin_port: Acceptor
    allowed: AllowedRepos
    on_demand: OnDemand
    fleet: Fleet

    @property
    def acceptors(self) -> Mapping[str, Acceptor]:
        """The acceptor of each listener."""
        return {**self.ports.acceptors, ADMIN: self.admin_port}


async def compose(
    state: ServeState, children: Children, begin: Begin, on_pass: Callable[[], None], keeper: SocketKeeper | None = None
) -> Assembly:
    """Builds every room without starting anything. Raises GitmirrorError."""
    layout, config, repos = state.layout, state.config, state.known_repos
    bus, stream = EventBus(), EventStream()
    stores, complaints = open_stores(layout, anew=True, patient=True), Complaints(layout, bus.publish)
    mirrors = Mirrors(layout, make_git(layout, config, children, complaints.hear))
    environment = git_environment(layout, layout.serving_config, os.environ)
    fleet_parts = compose_fleet_parts(state, stores, mirrors)
    daemon = await find_git_daemon(mirrors.git, environment, config.serve.idle_timeout, complaints.hear)

    keyring = make_keyring(config)
    refreshing = compose_refreshing(
        mirrors, config.refresh, keyring, stores.health, bus.publish, stream.publish, begin, on_pass,
        fleet_parts.news.source_of,
    )  # fmt: skip
    scheduler, health, learn = refreshing.scheduler, refreshing.scheduler.health, refreshing.notes.learn
    guests = KnownGuests(time.time)
    recording = compose_recording(
        mirrors, environment, stores, state.recording, repos, learn, bus.publish, begin, guests.is_known,
        fleet_parts.sender, fleet_parts.node, fleet_parts.clock,
    )  # fmt: skip
    read_tokens = ReadTokens(stores.tokens)
    # `allowed` and `on_demand` are built further down, of what these build.
    gate = AccessGate(mirrors.has, read_tokens.repo_of, guests, on_use=lambda repo: allowed.used(repo))
    spaces = compose_workspaces(
        mirrors, health, refreshing.refresher, stores.disk_leases, gate, settings=state.workspace,
        lfs_budget=state.lfs_budget, repos=repos, is_private=state.is_private,
        reader_of=partial(reader_named, guests, state.is_private), nudge=scheduler.nudge,
        bring=lambda url: on_demand.bring(url), brings=state.brings_repositories,
    )  # fmt: skip
    lfs, workspaces, disks = spaces.lfs, spaces.snapshots, spaces.disks
    maintainer = Maintainer(mirrors, mirrors.locks, stores.health, repos=repos, health=health, learn=learn)
    observing = compose_observing(
        layout, stores, children, scheduler, recording, repos, state.stale_after, state.alerts, state.mend,
        stream, bus.publish, begin,
    )  # fmt: skip

    brought = compose_bringing(fleet_parts, state, stores, mirrors, refreshing, bus.publish)
    fetching = compose_fetching(
        mirrors, config, children, environment, health, bus.publish, complaints.hear, brought.bringing
    )
    kit = GuestKit(state.public_url, state.is_public, repos, gate, workspaces.usual_history, state.workspace)
    freshness = Freshness(scheduler, workspaces, mirrors, state.stale_after, brought.bringing)
    codings = TarCodings(GzippedTars(children))
    registering = compose_registering(
        fleet_parts, state, stores, mirrors, gate, refreshing, recording, spaces, bus.publish, begin
    )
    follower, shared = registering.follower, registering.shared
    allowed, on_demand = registering.allowed, registering.on_demand
    routes = GuestRoutes(
        workspaces, fetching.refs, freshness, health, kit.render, bus.publish, codings, gate, fetching.engine.transfers
    )  # fmt: skip
    admin = AdminRoutes(
        state.webhook_secret_file, state.refresh_token_file, refreshing.announcements, repos, health, gate,
        observing.metrics, observing.push_watch,
    )  # fmt: skip
    lfs_routes = LfsRoutes(lfs, fetching.engine.budget, state.public_url, state.is_public, fetching.engine.transfers)
    ports = compose_ports(
        mirrors, config.serve, children, daemon, recording.pushes, fetching, gate, routes,
        HttpAttachments(recording.attachments, LARGEST), lfs_routes, on_demand,
    )  # fmt: skip

    backups = Backups(mirrors, state.backup)
    examiner = compose_examiner(mirrors, stores, refreshing.refresher.bring, state.backup)
    integrity = IntegrityWatch(examiner, repos, health, learn, bus.publish)
    sockets = GuestSockets(ports.acceptors, stores.guests.note_sockets, state.guests, keeper)
    registry = GuestRegistry(stores.guests, guests, sockets, ports.guests)
    budget = compose_budget(state, stores, health, fetching.cache, spaces, allowed)
    scrub = _scrub(fetching, spaces)
    observing.metrics.add_by_kind(budget.by_kind)
    observing.metrics.add_by_kind(fleet_parts.report.by_kind)
    storage = StorageReport(state, budget, fetching.cache, stores.sessions)
    status = Status(
        state, mirrors, scheduler, recording, workspaces, observing, fetching, ports, admin, backups,
        storage, registry, lfs, fleet_parts.report,
    )  # fmt: skip
    observing.metrics.add_gauges(
        ports.gauges, fetching.cache.gauges, workspaces.gauges, disks.gauges, lfs.gauges, backups.gauges,
        budget.gauges, registry.gauges, fleet_parts.report.gauges,
    )  # fmt: skip
    operations = Operations(
        state, stores, mirrors, scheduler, recording, workspaces, fetching.warmer, integrity, backups, kit,
        status, disks, registry, shared, allowed, brought,
    )  # fmt: skip
    api_tokens = ApiTokens(stores.api_tokens)
    api = compose_api(operations, stores, stream, api_tokens)
    admin_port = compose_admin_port(config.serve, ports, admin, api_handler(api, is_operator=False))
    fleet = compose_fleet(fleet_parts, state, stores, bus, scheduler, recording, shared, begin)
    subscribe(
        bus, stream, refreshing, recording, workspaces, disks, lfs, maintainer, observing, fetching, follower,
        integrity, allowed, shared,
    )  # fmt: skip
    return Assembly(
        state, stores, mirrors, stream, refreshing, recording, workspaces, disks, lfs, registry, maintainer, scrub,
        budget, observing, fetching, daemon, read_tokens, api_tokens, ports, follower, backups, integrity, status,
        operations, api, admin_port, allowed, on_demand, fleet,
    )  # fmt: skip


def _scrub(fetching: Fetching, spaces: Workspaces) -> Scrub:
    """Builds what checks the files that the kernel sends to guests, and that nothing else here reads."""
    return Scrub(
        {
            "cached responses": fetching.cache.check_next,
            "snapshots": spaces.snapshots.check_next,
            "disks": spaces.disks.check_next,
            "LFS objects": spaces.lfs.stock.check_next,
        }
    )
