"""The composition root: builds the rooms of one `serve`, wires their events, starts and stops them in order."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from appliance.core.activity import ActivityLog
from appliance.core.commands import Commands
from appliance.core.config import Config
from appliance.core.control import ControlServer
from appliance.core.errors import GitmirrorError
from appliance.core.git.command import git_environment
from appliance.core.git.mirror import Mirror
from appliance.core.layout import Layout
from appliance.core.live import Live
from appliance.core.locks import MirrorLocks
from appliance.core.maintenance.maintainer import Maintainer
from appliance.core.metrics import Metrics
from appliance.core.models import Hydration, Recorded, RefreshOutcome, RefsMoved, Repo
from appliance.core.owner import SERVE, claim
from appliance.core.processes import Children, raise_open_files_limit
from appliance.core.recording.guard import Guard
from appliance.core.recording.pushes import PushDesk
from appliance.core.refresh.refresher import Refresher
from appliance.core.refresh.scheduler import Scheduler, Settings
from appliance.core.rooms import (
    clean_up,
    make_git,
    make_state,
    open_stores,
    refuse_foreign_leftover,
    wanted_of_config,
)
from appliance.core.serving.acceptor import Acceptor, Admission, Limits
from appliance.core.serving.engine import Engine
from appliance.core.serving.http import Answer, HttpPort, plain_routes
from appliance.core.serving.httppush import HttpPushes
from appliance.core.serving.listener import GitPort, Serving
from appliance.core.serving.refs import RefSnapshots
from appliance.core.serving.relay import Daemon
from appliance.core.serving.responses import ResponseCache
from appliance.core.serving.smart import SmartHttp
from appliance.core.serving.sockets import listen, url_of
from appliance.core.serving.uploadpack import UploadPack
from appliance.core.serving.warming import Warmer
from appliance.core.store.database import StoreError
from appliance.core.systemd import Notifier
from appliance.core.units import Address

log = logging.getLogger(__name__)

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
WAIT_FOR_OWNER = 60.0
"""Seconds that a starting serve waits for an `add-repo` that is cloning by itself."""
TIDY_EVERY = 10.0


@dataclass(frozen=True)
class Start:
    """How this serve was started. `sockets` were inherited from systemd, by listener; `load` reads the config again."""

    layout: Layout
    load: Callable[[], Config]
    notifier: Notifier
    sockets: Mapping[str, list[socket.socket]] = field(default_factory=dict)
    announce: Callable[[str], None] = print


class Service:
    """One `serve`, from start to stop."""

    _live: Live

    def __init__(self, start: Start) -> None:
        self._start = start
        self._layout = start.layout
        self._recounts: dict[int, bool] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._watched_at = 0.0

    async def run(self) -> None:
        """Serves until SIGTERM or SIGINT; SIGHUP reloads. Raises GitmirrorError when it cannot start or a part dies."""
        stop, reload = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        loop.add_signal_handler(signal.SIGHUP, reload.set)
        config = self._start.load()
        raise_open_files_limit()
        make_state(self._layout)
        control_path = _control_path(self._layout)
        owned = await asyncio.to_thread(claim, self._layout, SERVE, control=control_path, wait=WAIT_FOR_OWNER)
        try:
            if owned.survivors:
                log.warning("ended %d processes that an earlier serve left", owned.survivors)
            await self._build(config, owned.children)
            await self._prepare()
            self._open_listeners()
            control = ControlServer(control_path, Commands(self._live).handlers())
            await control.start()
            parts = [
                self._begin(self._live.scheduler.run(), "scheduler"),
                self._begin(self._maintainer.run(), "maintainer"),
                self._begin(self._tidy(), "tidy"),
                self._begin(self._activity.run(), "activity"),
            ]
            for part in parts:
                part.add_done_callback(lambda _: stop.set())
            for repo in self._live.repos:
                if repo.enabled:
                    self._live.warmer.warm(repo)
            self._start.announce(self._live.ready_line())
            self._start.notifier.ready(self._live.summary())
            while not stop.is_set():
                await _first(stop.wait(), reload.wait())
                if reload.is_set():
                    reload.clear()
                    self._reload()
            died = [part for part in parts if part.done()]
            await self._stop(control)
        finally:
            await owned.children.end_all()
            owned.release()
        for part in died:
            raise GitmirrorError(f"the {part.get_name()} died: {part.exception()!r}", hint="see the log above")

    # -- start ---------------------------------------------------------------------------------------------

    async def _build(self, config: Config, children: Children) -> None:
        layout, stores, locks = self._layout, open_stores(self._layout), MirrorLocks()
        git = make_git(layout, config, children)
        self._refresher = Refresher(layout, git, locks, timeout=config.refresh.timeout)
        scheduler = Scheduler(
            self._refresher,
            Settings(config.refresh.interval, config.refresh.concurrency),
            self._record,
            on_moved=self._on_moved,
            on_pass=self._on_pass,
        )
        environment = git_environment(layout, layout.serving_config, os.environ)
        guard = Guard(layout, git, environment)
        desk = PushDesk(layout, guard, stores.audit, self._mirror, self._on_recorded, self._on_ruled)
        exec_path = (await git.run("--exec-path", cwd=Path("/"), deadline=10)).stdout.decode().strip()
        self._daemon = Daemon(f"{exec_path}/git-daemon", environment, config.serve.idle_timeout)
        cache = ResponseCache(layout.cache / "responses", config.cache.budget)
        cache.start()
        snapshots = RefSnapshots(self._mirror)
        upload_pack = UploadPack(children, environment, config.serve.idle_timeout)
        engine = Engine(
            cache,
            snapshots,
            upload_pack,
            self._mirror,
            on_hydrated=self._on_hydrated,
            on_shape=lambda repo, shape: self._live.warmer.saw(repo, shape),
        )
        warmer = Warmer(engine, cache, snapshots, self._mirror, lambda repo: scheduler.health(repo.id).tip)
        serving = Serving(layout, children, self._daemon, desk, engine, lambda name: locks.shared(name, preempt=True))
        admission = Admission(_limits(config))
        git_port = GitPort(serving, admission, lambda: self._live.clients)
        alive = {"/healthz": lambda: Answer(200, "ok\n")}
        pushes = HttpPushes(serving, config.serve.idle_timeout)
        smart = SmartHttp(engine, admission, pushes, serving.is_mirrored, alive)
        self._activity = ActivityLog(stores.activity)
        self._metrics = Metrics(
            lambda: [(repo, scheduler.health(repo.id)) for repo in self._live.repos],
            lambda: self._live.config.refresh.stale_after,
        )
        self._metrics.gauge("clients", "Guests' connections, waiting ones included.", lambda: self._live.clients)
        self._metrics.gauge("queue", "Guests that wait for a place.", lambda: admission.waiting)
        self._metrics.gauge("cache_bytes", "Bytes of whole answers kept.", lambda: cache.bytes)
        self._metrics.gauge("cache_budget_bytes", "Most bytes of answers kept.", lambda: cache.budget)
        self._metrics.gauge(
            "refused", "Guests that found no place in time, since the start.", lambda: admission.refused
        )
        admin = plain_routes(
            alive
            | {
                "/readyz": lambda: self._live.readiness(),
                "/metrics": lambda: Answer(200, self._metrics.render(), METRICS_TYPE),
            }
        )
        acceptors = {
            "git": Acceptor("git", git_port.serve),
            "http": Acceptor("http", HttpPort(smart.handle, admission.limits).serve),
            "admin": Acceptor("admin", HttpPort(admin, admission.limits).serve),
        }
        self._live = Live(
            layout=layout,
            config=config,
            stores=stores,
            git=git,
            locks=locks,
            scheduler=scheduler,
            guard=guard,
            desk=desk,
            admission=admission,
            git_port=git_port,
            smart=smart,
            acceptors=acceptors,
            cache=cache,
            snapshots=snapshots,
            warmer=warmer,
        )
        self._maintainer = Maintainer(
            self._mirror,
            locks,
            repos=lambda: self._live.repos,
            health=scheduler.health,
            update=self._update_health,
            anchor_times=lambda repo_id: asyncio.to_thread(stores.health.anchor_times, repo_id),
            set_anchor_times=lambda repo_id, times: asyncio.to_thread(stores.health.set_anchor_times, repo_id, times),
        )

    async def _prepare(self) -> None:
        """Everything that must be true before the first guest: clean mirrors, proved hooks, a settled log."""
        live = self._live
        self._reconcile()
        repos = live.stores.registry.all()
        for left in await asyncio.to_thread(clean_up, self._layout, [self._mirror(repo.name) for repo in repos]):
            log.info("removed %s, left by a killed git", left)
        for repo in repos:
            if self._mirror(repo.name).exists():
                self._mirror(repo.name).configure(repo.url)
        try:
            live.guard.install()
            await live.guard.prove(self._daemon.command())
        except GitmirrorError as error:
            live.guard.broken = error.message
        if settled := await live.desk.settle():
            log.warning("settled %d push attempts that an earlier serve left open", settled)
        live.follow_registry()

    def _reconcile(self) -> None:
        live = self._live
        known = {repo.name for repo in live.stores.registry.all()}
        problems, usable = live.config.warnings(), []
        for each in wanted_of_config(live.config):
            try:
                if each.name not in known:
                    refuse_foreign_leftover(self._layout, each)
                usable.append(each)
            except GitmirrorError as error:
                problems.append(f"{error.message}: {error.hint}")
        live.problems = [*problems, *live.stores.registry.reconcile(usable)]
        for problem in live.problems:
            log.warning("%s", problem)

    def _open_listeners(self) -> None:
        live, config = self._live, self._live.config.serve
        for name, address in (("git", config.git), ("http", config.http), ("admin", config.admin)):
            if sockets := self._sockets(name, address):
                live.acceptors[name].start(sockets)
                live.urls[name] = url_of(sockets[0], "git" if name == "git" else "http")

    def _sockets(self, name: str, address: Address | None) -> list[socket.socket]:
        if inherited := self._start.sockets.get(name):
            return list(inherited)
        return [listen(address, name)] if address else []

    # -- reload and stop -----------------------------------------------------------------------------------

    def _reload(self) -> None:
        """SIGHUP. A config that is wrong changes nothing; addresses and limits of `[serve]` hold until a restart."""
        self._start.notifier.reloading()
        live = self._live
        try:
            config = self._start.load()
            wanted_of_config(config)
            live.config = replace(config, serve=live.config.serve)
            self._refresher.timeout = config.refresh.timeout
            make_git(self._layout, config, live.git.children)
            self._reconcile()
            live.follow_registry()
            log.info("the configuration was read again")
        except GitmirrorError as error:
            log.error("the reload was refused, everything is as before: %s (%s)", error.message, error.hint)
        self._start.notifier.ready(live.summary())

    async def _stop(self, control: ControlServer) -> None:
        """Guests first: what runs may finish while refreshes go on; then everything else."""
        drain = self._live.config.serve.drain_timeout
        log.info("stopping")
        self._start.notifier.stopping(drain + 10)
        acceptors = self._live.acceptors
        await asyncio.gather(*(acceptors[name].stop(drain) for name in ("git", "http")), acceptors["admin"].stop(0))
        await control.stop()
        await self._live.warmer.stop()
        await self._live.cache.stop()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._live.desk.close()
        await self._activity.write()
        self._live.stores.database.close()

    # -- events --------------------------------------------------------------------------------------------

    def _begin(self, work: Any, name: str) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _mirror(self, name: str) -> Mirror:
        return self._live.mirror(name)

    async def _record(self, repo_id: int, outcome: RefreshOutcome, /, **columns: Any) -> None:
        try:
            self._metrics.refreshed(outcome)
            await asyncio.to_thread(self._live.stores.health.record_refresh, repo_id, outcome, **columns)
        except StoreError as error:
            log.error("the refresh of %s cannot be recorded: %s", outcome.repo, error.message)

    async def _update_health(self, repo_id: int, **columns: Any) -> None:
        self._live.scheduler.note(repo_id, **columns)
        try:
            await asyncio.to_thread(self._live.stores.health.update, repo_id, **columns)
        except StoreError as error:
            log.error("the health of repository %d cannot be recorded: %s", repo_id, error.message)

    async def _on_moved(self, event: RefsMoved) -> None:
        self._live.snapshots.invalidate(event.repo.id)
        self._maintainer.mark(event.repo.name)
        self._live.warmer.warm(event.repo)

    def _on_ruled(self, accepted: bool) -> None:
        self._metrics.ruled(accepted)

    def _on_hydrated(self, event: Hydration) -> None:
        self._metrics.hydrated(event)
        self._activity.add(event)
        log.debug("%s: %s (%s) to %s in %.3fs", event.repo, event.shape, event.way, event.client, event.seconds)

    async def _on_recorded(self, event: Recorded) -> None:
        self._live.snapshots.invalidate(event.repo.id)
        self._maintainer.mark(event.repo.name)
        if event.repo.id in self._recounts:
            self._recounts[event.repo.id] = True
        else:
            self._recounts[event.repo.id] = False
            self._begin(self._count_sessions(event.repo), f"count {event.repo.name}")

    async def _count_sessions(self, repo: Repo) -> None:
        """Counts again as long as pushes come, one count at a time: fifty at once need not be counted fifty times."""
        try:
            again = True
            while again:
                self._recounts[repo.id] = False
                sessions = await self._mirror(repo.name).local_refs("refs/agents/")
                await self._update_health(repo.id, sessions=len(sessions))
                again = self._recounts[repo.id]
        except GitmirrorError as error:
            log.warning("%s: sessions cannot be counted: %s", repo.name, error.message)
        finally:
            del self._recounts[repo.id]

    def _on_pass(self) -> None:
        """The scheduler makes progress: only then is the watchdog told so. A hung upstream does not stop its passes."""
        interval, now = self._start.notifier.watchdog_interval, time.monotonic()
        if interval is not None and now - self._watched_at >= min(interval, 1.0):
            self._watched_at = now
            self._start.notifier.watchdog()

    async def _tidy(self) -> None:
        while True:
            await asyncio.sleep(TIDY_EVERY)
            await self._live.desk.tidy()
            self._start.notifier.status(self._live.summary())


def _limits(config: Config) -> Limits:
    serve = config.serve
    return Limits(
        serve.max_clients, serve.queue_timeout, serve.request_timeout, serve.idle_timeout, serve.total_timeout
    )


def _control_path(layout: Layout) -> Path:
    """In systemd's RuntimeDirectory when there is one: that is where the operators' group reaches it."""
    runtime = os.environ.get("RUNTIME_DIRECTORY")
    return Path(runtime.partition(":")[0]) / "control.sock" if runtime else layout.control_socket


async def _first(*waits: Awaitable[Any]) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
