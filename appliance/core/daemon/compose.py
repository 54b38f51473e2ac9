"""Builds the rooms of one `serve`, each given what it needs and nothing more."""

from __future__ import annotations

import asyncio
import functools
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.core.access.gate import AccessGate
from appliance.core.access.read_tokens import ReadTokens
from appliance.core.config.secret_files import SecretFile
from appliance.core.config.settings import Config
from appliance.core.daemon.live import Live
from appliance.core.daemon.wiring import Events
from appliance.core.errors import GitmirrorError
from appliance.core.git.command import git_environment
from appliance.core.git.mirror import Mirror
from appliance.core.git.mirror_locks import MirrorLocks
from appliance.core.health import lag_of
from appliance.core.layout import Layout
from appliance.core.maintenance.maintainer import Maintainer
from appliance.core.models import Hydration, RefreshOutcome
from appliance.core.node.state_dir import make_git, make_keyring, mirrors_on_disk, open_stores
from appliance.core.observability.alerts import Alerts
from appliance.core.observability.event_sinks import EventSinks
from appliance.core.observability.health_monitor import HealthMonitor
from appliance.core.observability.metrics import Metrics
from appliance.core.observability.push_watch import PushWatch
from appliance.core.process.children import Children
from appliance.core.process.disk import disk_complaint, free_bytes
from appliance.core.recording.found import FoundTurns
from appliance.core.recording.hook_guard import HookGuard
from appliance.core.recording.push_authorizer import PushAuthorizer
from appliance.core.recording.quota import Quota, RecordingLimits
from appliance.core.recording.retention import Retention
from appliance.core.recording.trusted_time import TrustedTime
from appliance.core.recording.turns import TurnRecorder
from appliance.core.refresh.announcements import Announcements
from appliance.core.refresh.refresher import Refresher
from appliance.core.refresh.scheduler import Scheduler, Settings
from appliance.core.serving.fetch.engine import Engine
from appliance.core.serving.fetch.ref_snapshots import RefSnapshots
from appliance.core.serving.fetch.response_cache import ResponseCache
from appliance.core.serving.fetch.upload_pack import UploadPack
from appliance.core.serving.fetch.warmer import Warmer
from appliance.core.serving.net.acceptor import Acceptor, Limits
from appliance.core.serving.net.admission import Admission
from appliance.core.serving.net.http import HttpPort, TextResponse, plain_routes
from appliance.core.serving.net.seats import Seats
from appliance.core.serving.ports.admin_routes import AdminRoutes
from appliance.core.serving.ports.freshness import Freshness
from appliance.core.serving.ports.git import GitPort, Serving
from appliance.core.serving.ports.git_daemon import GitDaemon
from appliance.core.serving.ports.guest_routes import GuestRoutes
from appliance.core.serving.ports.smart_http import SmartHttp
from appliance.core.serving.push.http import HttpPushes
from appliance.core.store.write_behind import WriteBehind
from appliance.core.workspace.snapshots import Snapshots

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


HYDRATIONS_PACE = 0.8
REFRESHES_PACE = 2.0
"""Seconds that a row waits to be written. A refresh that found nothing new is, lost by a kill, only done again."""


@dataclass(frozen=True)
class Assembly:
    """What the service starts and stops."""

    live: Live
    refresher: Refresher
    maintainer: Maintainer
    activity: WriteBehind[tuple[float, Hydration]]
    refreshes: WriteBehind[tuple[int, RefreshOutcome, Mapping[str, Any]]]
    retention: Retention
    daemon: GitDaemon
    read_tokens: ReadTokens
    vigil: HealthMonitor
    alerts: Alerts
    push_watch: PushWatch
    sinks: EventSinks


async def assemble(
    layout: Layout, config: Config, children: Children, events: Events, on_pass: Callable[[], None]
) -> Assembly:
    """Builds every room and wires `events`. Nothing runs yet. Raises GitmirrorError."""
    live: Live
    stores, locks = open_stores(layout, anew=True, patient=True), MirrorLocks()
    git = make_git(layout, config, children)

    @functools.cache
    def mirror_of(name: str) -> Mirror:
        # Kept: each request asks for it some times, and making a path costs as much as reading a file.
        return Mirror(layout.mirror(name), git)

    refresher = Refresher(layout, git, locks, make_keyring(config), timeout=config.refresh.timeout)
    settings = Settings(config.refresh.interval, config.refresh.concurrency)
    scheduler = Scheduler(
        refresher, settings, events.refreshed, on_moved=events.moved, on_pass=on_pass, on_done=events.refresh_done
    )
    environment = git_environment(layout, layout.serving_config, os.environ)
    guard = HookGuard(layout, git, environment)
    book = TurnRecorder(stores.sessions, mirror_of)
    quota = Quota(lambda: _recording_limits(live.config), time.monotonic)
    found = FoundTurns(stores.audit, book, lambda: mirrors_on_disk(layout), mirror_of)
    desk = PushAuthorizer(layout, guard, stores.audit, book, found, quota, mirror_of, events.recorded, events.ruled)
    trusted_time = TrustedTime(stores.time, time.time, time.monotonic)
    retention = Retention(
        book,
        quota,
        mirror_of,
        locks,
        repos=lambda: live.repos,
        keep_for=lambda: live.config.recording.retention,
        on_moved=events.sessions_ended,
        time=trusted_time,
    )
    exec_path = (await git.run("--exec-path", cwd=Path("/"), deadline=10)).stdout.decode().strip()
    idle = config.serve.idle_timeout
    daemon = GitDaemon(f"{exec_path}/git-daemon", environment, idle)

    cache = ResponseCache(layout.cache / "responses", config.cache.budget)
    cache.start()
    upload_pack = UploadPack(children, environment, idle)
    snapshots = RefSnapshots(upload_pack, mirror_of)
    engine = Engine(cache, snapshots, upload_pack, mirror_of, events)
    warmer = Warmer(engine, cache, mirror_of, lambda repo: scheduler.health(repo.id).tip)

    limits = _limits(config)
    admission, seats = Admission(limits), Seats(limits.max_connections)
    serving = Serving(mirror_of, children, daemon, desk, engine, lambda name: locks.shared(name, preempt=True))
    read_tokens = ReadTokens(stores.tokens)
    door = AccessGate(serving.is_mirrored, read_tokens.repo_of)
    git_port = GitPort(serving, door, admission)
    alive = {"/healthz": lambda: TextResponse(200, "ok\n")}
    workspaces = Snapshots(
        layout, mirror_of, lambda repo: live.followed_branch(repo), enabled=lambda: live.config.workspace.enabled
    )
    routes = GuestRoutes(
        tar=lambda repo, branch: live.tar(repo, branch),
        freshness=lambda repo, want: freshness.document(repo, want),
        lag=lambda repo: lag_of(scheduler.health(repo.id), time.time()),
        kit=lambda: live.guest_kit(),
        told=events,
    )
    smart = SmartHttp(
        engine,
        door,
        admission,
        HttpPushes(mirror_of, children, environment, desk, serving.writing, idle),
        routes,
        alive,
    )
    metrics = Metrics(
        lambda: [(repo, scheduler.health(repo.id)) for repo in live.repos],
        lambda: live.config.refresh.stale_after,
    )
    secret = SecretFile("[refresh] webhook_secret_file", lambda: live.config.refresh.webhook_secret_file)
    token = SecretFile("[refresh] token_file", lambda: live.config.refresh.token_file)
    announcements = Announcements(scheduler, mirror_of, events.begin)
    looks = {"/readyz": lambda: live.readiness(), "/metrics": lambda: TextResponse(200, metrics.render(), METRICS_TYPE)}
    admin = AdminRoutes(
        plain_routes(alive | looks),
        secret,
        token,
        announcements,
        repos=lambda: live.repos,
        find=lambda path: door.catalog.find(path) or door.catalog.find_private(path),
        answered=metrics.webhook,
    )
    alerts = Alerts(stores.alerts, children, lambda: live.config.alerts, layout.pushes_told)
    push_watch = PushWatch(guard, desk, stores.audit, events.feed, alerts)
    live = Live(
        layout=layout,
        config=config,
        stores=stores,
        git=git,
        locks=locks,
        scheduler=scheduler,
        guard=guard,
        desk=desk,
        admission=admission,
        door=door,
        acceptors={
            "git": Acceptor("git", git_port.serve, seats),
            "http": Acceptor("http", HttpPort(smart.handle, limits).serve, seats),
            # Operators have room of their own.
            "admin": Acceptor("admin", HttpPort(admin.handle, limits).serve, Seats(limits.max_connections)),
        },
        cache=cache,
        snapshots=snapshots,
        warmer=warmer,
        retention=retention,
        found=found,
        workspaces=workspaces,
        push_watch=push_watch,
    )
    freshness = Freshness(live)
    metrics.gauge("clients", "Guests' connections, waiting ones included.", lambda: live.clients)
    metrics.gauge("queue", "Guests that wait for a place.", lambda: admission.waiting)
    metrics.gauge("refused", "Guests that found no place in time, since the start.", lambda: admission.refused)
    metrics.gauge("cache_bytes", "Bytes of whole answers kept.", lambda: cache.bytes)
    metrics.gauge("cache_budget_bytes", "Most bytes of answers kept.", lambda: cache.budget)
    maintainer = Maintainer(
        mirror_of,
        locks,
        repos=lambda: live.repos,
        health=scheduler.health,
        update=events.update_health,
        anchor_times=lambda repo_id: asyncio.to_thread(stores.health.anchor_times, repo_id),
        set_anchor_times=lambda repo_id, times: asyncio.to_thread(stores.health.set_anchor_times, repo_id, times),
    )
    activity = WriteBehind("hydrations", stores.activity.record, HYDRATIONS_PACE)
    refreshes = WriteBehind("refreshes", stores.health.record_refreshes, REFRESHES_PACE)
    vigil = HealthMonitor(scheduler, events.feed, alerts, lambda: live.repos, lambda: live.config.refresh.stale_after)
    metrics.gauge("pushes_enabled", "1 while pushes are let in.", lambda: push_watch.off is None)
    metrics.gauge("disk_free_bytes", "Free on the state directory's disk.", lambda: free_bytes(layout.state))
    live.complaints += [
        secret.problem,
        token.problem,
        lambda: alerts.trouble,
        lambda: cache.trouble,
        lambda: workspaces.trouble if live.config.workspace.enabled else None,
        lambda: disk_complaint(layout.state),
        lambda: _registry_complaint(live.registry_lost),
        found.trouble,
        trusted_time.trouble,
    ]
    live.on_followed = vigil.look
    events.attach(live, maintainer, metrics, activity, refreshes, vigil, announcements)
    sinks = EventSinks(events.feed, children, events.begin)
    return Assembly(
        live,
        refresher,
        maintainer,
        activity,
        refreshes,
        retention,
        daemon,
        read_tokens,
        vigil,
        alerts,
        push_watch,
        sinks,
    )


def _registry_complaint(lost: GitmirrorError | None) -> str | None:
    """Why what is followed is not the registry."""
    if lost is None:
        return None
    return f"the registry cannot be read, so the config's list and every mirror on disk are served: {lost.message}"


def _recording_limits(config: Config) -> RecordingLimits:
    recording = config.recording
    return RecordingLimits(
        max_new_sessions=recording.max_new_sessions,
        max_turns=recording.max_turns,
        max_bytes=recording.max_bytes,
        max_objects=recording.max_objects,
        max_push=recording.max_push,
    )


def _limits(config: Config) -> Limits:
    serve = config.serve
    return Limits(
        serve.max_clients, serve.queue_timeout, serve.request_timeout, serve.idle_timeout, serve.total_timeout
    )
