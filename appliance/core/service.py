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

from appliance.core.config import Config
from appliance.core.control import ControlServer, Tell
from appliance.core.errors import GitmirrorError
from appliance.core.git.command import git_environment
from appliance.core.git.mirror import Mirror
from appliance.core.layout import Layout
from appliance.core.locks import MirrorLocks
from appliance.core.maintenance.maintainer import Maintainer
from appliance.core.models import Recorded, RefreshOutcome, RefsMoved, Repo
from appliance.core.owner import SERVE, claim
from appliance.core.recording.guard import Guard
from appliance.core.recording.pushes import PushDesk
from appliance.core.refresh.refresher import Refresher
from appliance.core.refresh.scheduler import Scheduler, Settings
from appliance.core.registration import added_document, outcome_document, register, unregister
from appliance.core.rooms import (
    Stores,
    clean_up,
    make_git,
    make_state,
    open_stores,
    refuse_foreign_leftover,
    wanted_of_config,
)
from appliance.core.serving.catalog import Catalog
from appliance.core.serving.http import Answer, HttpListener
from appliance.core.serving.listener import GitListener, Limits, Serving
from appliance.core.serving.relay import Daemon
from appliance.core.serving.sockets import listen, url_of
from appliance.core.status import repo_documents, status_document
from appliance.core.store.database import StoreError
from appliance.core.systemd import Notifier

log = logging.getLogger(__name__)

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

    def __init__(self, start: Start) -> None:
        self._start = start
        self._layout = start.layout
        self._config = start.load()
        self._repos: list[Repo] = []
        self._problems: list[str] = []
        self._recounts: dict[int, bool] = {}
        self._background: set[asyncio.Task[Any]] = set()
        self._urls: dict[str, str | None] = {"git": None, "http": None, "admin": None}
        self._watched_at = 0.0

    async def run(self) -> None:
        """Serves until SIGTERM or SIGINT; SIGHUP reloads. Raises GitmirrorError when it cannot start."""
        stop, reload = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        loop.add_signal_handler(signal.SIGHUP, reload.set)

        make_state(self._layout)
        control = _control_path(self._layout)
        owned = await asyncio.to_thread(claim, self._layout, SERVE, control=control, wait=WAIT_FOR_OWNER)
        try:
            self._build(owned.children, open_stores(self._layout))
            await self._prepare(owned.survivors)
            self._control = ControlServer(control, self._handlers())
            await self._open_listeners()
            await self._control.start()
            self._background |= {
                asyncio.create_task(self._scheduler.run(), name="scheduler"),
                asyncio.create_task(self._maintainer.run(), name="maintainer"),
                asyncio.create_task(self._tidy(), name="tidy"),
            }
            for task in self._background:
                task.add_done_callback(lambda done: None if done.cancelled() else stop.set())
            self._start.announce(self._ready_line())
            self._start.notifier.ready(self._summary())
            while not stop.is_set():
                await _first(stop.wait(), reload.wait())
                if reload.is_set():
                    reload.clear()
                    await self._reload()
            await self._stop()
        finally:
            await owned.children.end_all()
            owned.release()
        for task in self._background:
            if not task.cancelled() and (error := task.exception()):
                raise GitmirrorError(f"{task.get_name()} died: {error!r}") from error

    # -- start ---------------------------------------------------------------------------------------------

    def _build(self, children: Any, stores: Stores) -> None:
        config, layout = self._config, self._layout
        self._stores = stores
        self._children = children
        self._locks = MirrorLocks()
        self._git = make_git(layout, config, children)
        self._refresher = Refresher(layout, self._git, self._locks, timeout=config.refresh.timeout)
        self._scheduler = Scheduler(
            self._refresher, _settings(config), self._record, on_moved=self._on_moved, on_pass=self._on_pass
        )
        environment = git_environment(layout, layout.serving_config, os.environ)
        self._guard = Guard(layout, self._git, environment)
        self._desk = PushDesk(layout, self._guard, stores.audit, self._mirror, self._on_recorded)
        self._maintainer = Maintainer(
            self._mirror,
            self._locks,
            repos=lambda: self._repos,
            health=self._scheduler.health,
            update=self._update_health,
            anchor_times=lambda repo_id: asyncio.to_thread(stores.health.anchor_times, repo_id),
            set_anchor_times=lambda repo_id, times: asyncio.to_thread(stores.health.set_anchor_times, repo_id, times),
        )
        self._daemon = environment

    async def _prepare(self, survivors: int) -> None:
        if survivors:
            log.warning("ended %d processes that an earlier serve left", survivors)
        self._reconcile()
        mirrors = [self._mirror(repo.name) for repo in self._stores.registry.all()]
        for left in await asyncio.to_thread(clean_up, self._layout, mirrors):
            log.info("removed %s, left by a killed git", left)
        for repo in self._stores.registry.all():
            mirror = self._mirror(repo.name)
            if mirror.exists():
                mirror.configure(repo.url)
        exec_path = (await self._git.run("--exec-path", cwd=Path("/"), deadline=10)).stdout.decode().strip()
        daemon = Daemon(f"{exec_path}/git-daemon", self._daemon, self._config.serve.idle_timeout)
        serving = Serving(
            self._layout,
            self._children,
            daemon,
            self._desk,
            lambda name: self._locks.shared(name, preempt=True),
        )
        self._listener = GitListener(serving, _limits(self._config))
        try:
            self._guard.install()
            await self._guard.prove(daemon.command())
        except GitmirrorError as error:
            self._guard.broken = error.message
        if settled := await self._desk.settle():
            log.warning("settled %d push attempts that an earlier serve left open", settled)
        self._follow(self._stores.health.all())

    def _reconcile(self) -> None:
        wanted = wanted_of_config(self._config)
        known = {repo.name for repo in self._stores.registry.all()}
        problems, usable = [], []
        for each in wanted:
            try:
                if each.name not in known:
                    refuse_foreign_leftover(self._layout, each)
                usable.append(each)
            except GitmirrorError as error:
                problems.append(f"{error.message}: {error.hint}")
        problems += self._stores.registry.reconcile(usable)
        self._problems = [*self._config.warnings(), *problems]
        for problem in self._problems:
            log.warning("%s", problem)

    async def _open_listeners(self) -> None:
        config = self._config.serve
        if sockets := self._sockets("git", config.git):
            self._listener.start(sockets)
            self._urls["git"] = url_of(sockets[0], "git")
        alive = {"/healthz": lambda: Answer(200, "ok\n")}
        guests = HttpListener(alive, request_timeout=config.request_timeout)
        admin = HttpListener(alive | {"/readyz": self._readiness}, request_timeout=config.request_timeout)
        self._http = [guests, admin]
        for name, server, address in (("http", guests, config.http), ("admin", admin, config.admin)):
            if sockets := self._sockets(name, address):
                self._urls[name] = url_of(sockets[0], "http")
                await server.start(sockets)

    def _sockets(self, name: str, address: Any) -> list[socket.socket]:
        if inherited := self._start.sockets.get(name):
            return list(inherited)
        return [listen(address, name)] if address else []

    def _ready_line(self) -> str:
        parts = [("", self._urls["git"]), ("", self._urls["http"]), ("admin ", self._urls["admin"])]
        return " ".join(["ready", *(f"{label}{url}" for label, url in parts if url)])

    # -- reload and stop -----------------------------------------------------------------------------------

    async def _reload(self) -> None:
        """SIGHUP. A config that is wrong changes nothing; addresses hold until a restart."""
        self._start.notifier.reloading()
        try:
            config = self._start.load()
            wanted_of_config(config)
            self._config = replace(config, serve=self._config.serve)
            self._refresher.timeout = config.refresh.timeout
            self._git = make_git(self._layout, config, self._children)
            self._reconcile()
            self._follow(self._stores.health.all())
            log.info("the configuration was read again")
        except GitmirrorError as error:
            log.error("the reload was refused, everything is as before: %s (%s)", error.message, error.hint)
        self._start.notifier.ready(self._summary())

    def _follow(self, healths: Mapping[int, Any]) -> None:
        """Tells everyone who follows the registry what is in it now."""
        self._repos = self._stores.registry.all()
        self._scheduler.follow(self._repos, dict(healths), _settings(self._config))
        self._listener.catalog = Catalog(self._repos)

    async def _stop(self) -> None:
        drain = self._config.serve.drain_timeout
        log.info("stopping")
        self._start.notifier.stopping(drain + 10)
        for server in self._http:
            await server.stop()
        await self._listener.stop(drain)
        await self._control.stop()
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self._desk.close()
        self._stores.database.close()

    # -- events --------------------------------------------------------------------------------------------

    def _mirror(self, name: str) -> Mirror:
        return Mirror(self._layout.mirror(name), self._git)

    async def _record(self, repo_id: int, outcome: RefreshOutcome, /, **columns: Any) -> None:
        try:
            await asyncio.to_thread(self._stores.health.record_refresh, repo_id, outcome, **columns)
        except StoreError as error:
            log.error("the refresh of %s cannot be recorded: %s", outcome.repo, error.message)

    async def _update_health(self, repo_id: int, **columns: Any) -> None:
        self._scheduler.note(repo_id, **columns)
        try:
            await asyncio.to_thread(self._stores.health.update, repo_id, **columns)
        except StoreError as error:
            log.error("the health of repository %d cannot be recorded: %s", repo_id, error.message)

    async def _on_moved(self, event: RefsMoved) -> None:
        self._maintainer.mark(event.repo.name)

    async def _on_recorded(self, event: Recorded) -> None:
        self._maintainer.mark(event.repo.name)
        if event.repo.id in self._recounts:
            self._recounts[event.repo.id] = True
            return
        task = asyncio.create_task(self._count_sessions(event.repo))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

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
            self._recounts.pop(repo.id, None)

    def _on_pass(self) -> None:
        """The scheduler makes progress: only then is the watchdog told so. A hung upstream does not stop its passes."""
        interval, now = self._start.notifier.watchdog_interval, time.monotonic()
        if interval is not None and now - self._watched_at >= min(interval, 1.0):
            self._watched_at = now
            self._start.notifier.watchdog()

    async def _tidy(self) -> None:
        while True:
            await asyncio.sleep(TIDY_EVERY)
            await self._desk.tidy()
            self._start.notifier.status(self._summary())

    # -- answers -------------------------------------------------------------------------------------------

    def _summary(self) -> str:
        documents = repo_documents(self._repos, self._healths(), self._config, time.time())
        counts: dict[str, int] = {}
        for document in documents:
            counts[document["state"]] = counts.get(document["state"], 0) + 1
        states = ", ".join(f"{count} {state}" for state, count in sorted(counts.items())) or "none registered"
        off = f"; pushes are off: {self._guard.broken}" if self._guard.broken else ""
        return f"{self._listener.clients} guests; repositories: {states}{off}"

    def _readiness(self) -> Answer:
        waiting = [
            repo.name for repo in self._repos if repo.enabled and self._scheduler.health(repo.id).checked_at is None
        ]
        return Answer(503, f"not tried yet: {', '.join(waiting)}\n") if waiting else Answer(200, "ready\n")

    def _healths(self) -> dict[int, Any]:
        return {repo.id: self._scheduler.health(repo.id) for repo in self._repos}

    def _status(self) -> dict[str, Any]:
        warnings = list(self._problems)
        try:
            audit_head = self._stores.audit.head()
        except StoreError as error:
            audit_head = None
            warnings.append(f"pushes are off: {error.message}")
        try:
            self._guard.check()
        except GitmirrorError as error:
            warnings.append(error.message)
        live = {
            "serving": True,
            "pid": os.getpid(),
            **{key: self._public(key) for key in ("git", "http", "admin")},
            "clients": self._listener.clients,
            "pushes": {"accepted": self._desk.accepted, "rejected": self._desk.rejected},
            "warnings": warnings,
        }
        return status_document(
            self._repos, self._healths(), self._config, time.time(), audit_head=audit_head, live=live
        )

    def _public(self, listener: str) -> str | None:
        """What guests call a listener: the configured public address, else where it listens."""
        configured = {"git": self._config.serve.public_git, "http": self._config.serve.public_http}.get(listener)
        return (configured or self._urls[listener]) if self._urls[listener] else None

    def _handlers(self) -> dict[str, Callable[[Mapping[str, Any], Tell], Awaitable[Any]]]:
        async def status(arguments: Mapping[str, Any], tell: Tell) -> Any:
            return self._status()

        async def repos(arguments: Mapping[str, Any], tell: Tell) -> Any:
            return repo_documents(self._repos, self._healths(), self._config, time.time())

        return {
            "status": status,
            "repos": repos,
            "add": self._add,
            "remove": self._remove,
            "set-enabled": self._set_enabled,
            "refresh": self._refresh,
        }

    async def _add(self, arguments: Mapping[str, Any], tell: Tell) -> Any:
        repo = register(self._stores, self._layout, self._config, arguments)
        self._follow(self._stores.health.all())
        outcome = None
        if arguments.get("wait", True) and not self._scheduler.health(repo.id).cloned:
            outcome = await self._scheduler.refresh_now(repo, tell)
        return added_document(repo, self._scheduler.health(repo.id), self._config, outcome)

    async def _remove(self, arguments: Mapping[str, Any], tell: Tell) -> Any:
        name, purge = arguments["name"], bool(arguments.get("purge"))
        unregister(self._stores, self._layout, self._config, name, purge=purge)
        self._follow(self._stores.health.all())
        if purge:
            async with self._locks.exclusive(name):
                await asyncio.to_thread(self._mirror(name).discard)
        return {"name": name, "purged": purge}

    async def _set_enabled(self, arguments: Mapping[str, Any], tell: Tell) -> Any:
        repo = self._stores.registry.set_enabled(arguments["name"], bool(arguments["enabled"]))
        self._follow(self._stores.health.all())
        return repo_documents([repo], self._healths(), self._config, time.time())[0]

    async def _refresh(self, arguments: Mapping[str, Any], tell: Tell) -> Any:
        names = arguments.get("names") or [repo.name for repo in self._repos if repo.enabled]
        chosen = [self._stores.registry.get(name) for name in names]
        outcomes = await asyncio.gather(*(self._scheduler.refresh_now(repo) for repo in chosen))
        return [outcome_document(outcome) for outcome in outcomes]


def _settings(config: Config) -> Settings:
    return Settings(config.refresh.interval, config.refresh.concurrency)


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
