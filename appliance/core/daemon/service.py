"""The life of one `serve`: start in order, follow signals, reload, stop in order."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from appliance.core.config.settings import Config
from appliance.core.daemon.compose import Assembly, compose
from appliance.core.daemon.control_server import ControlServer
from appliance.core.daemon.handlers import Commands
from appliance.core.daemon.state import ADMIN, GIT, HTTP, ServeState
from appliance.core.daemon.systemd import Notifier
from appliance.core.errors import GitmirrorError
from appliance.core.git.command import write_git_configs
from appliance.core.layout import Layout
from appliance.core.models import Repo
from appliance.core.node.state_dir import (
    clean_up,
    make_keyring,
    make_state,
    refuse_foreign_leftover,
    wanted_of_config,
)
from appliance.core.process.children import raise_open_files_limit
from appliance.core.process.owner import SERVE, claim
from appliance.core.serving.net.sockets import listen, url_of
from appliance.core.units import Address

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

    _state: ServeState
    _rooms: Assembly
    _control: ControlServer

    def __init__(self, start: Start) -> None:
        self._start = start
        self._layout = start.layout
        self._tasks: set[asyncio.Task[None]] = set()
        self._watched_at = 0.0

    async def run(self) -> None:
        """Serves until SIGTERM or SIGINT; SIGHUP reloads. Raises GitmirrorError when it cannot start or a part dies."""
        stop, reload = _signals()
        self._state = ServeState(self._layout, self._start.load())
        raise_open_files_limit()
        make_state(self._layout)
        control_path = _control_path(self._layout)
        owned = await asyncio.to_thread(claim, self._layout, SERVE, control=control_path, wait=WAIT_FOR_OWNER)
        try:
            if owned.survivors:
                log.warning("ended %d processes that an earlier serve left", owned.survivors)
            self._rooms = await compose(self._state, owned.children, self._begin, self._on_pass)
            self._control = ControlServer(control_path, Commands(self._rooms).handlers(), self._rooms.stream)
            await self._prepare()
            self._open_listeners()
            await self._control.start()
            parts = self._begin_parts()
            for part in parts:
                part.add_done_callback(lambda _: stop.set())
            self._warm()
            self._start.announce(self._state.ready_line())
            self._start.notifier.ready(self._rooms.status.summary())
            while not stop.is_set():
                await _first(stop.wait(), reload.wait())
                if reload.is_set():
                    reload.clear()
                    await self._reload()
            died = [part for part in parts if part.done()]
            await self._stop()
        finally:
            await owned.children.end_all()
            owned.release()
        for part in died:
            raise GitmirrorError(f"the {part.get_name()} died: {part.exception()!r}", hint="see the log above")

    # -- start ---------------------------------------------------------------------------------------------

    async def _prepare(self) -> None:
        """Everything that must be true before the first guest: clean mirrors, proved hooks, a settled log."""
        rooms = self._rooms
        await asyncio.to_thread(self._reconcile)
        repos = rooms.stores.registry.all()
        await asyncio.to_thread(self._clean_mirrors, repos)
        try:
            rooms.recording.guard.install()
            await rooms.recording.guard.prove(rooms.daemon.command())
        except GitmirrorError as error:
            rooms.recording.guard.broken = error.message
        if settled := await rooms.recording.pushes.settle():
            log.warning("settled %d push attempts that an earlier serve left open", settled)
        await rooms.follower.follow()

    def _reconcile(self) -> None:
        """Makes the registry follow the config's list. Raises StoreError."""
        state, registry = self._state, self._rooms.stores.registry
        known = {repo.name for repo in registry.all()}
        problems, usable = state.config.warnings(), []
        for each in wanted_of_config(state.config):
            try:
                if each.name not in known:
                    refuse_foreign_leftover(self._layout, each)
                usable.append(each)
            except GitmirrorError as error:
                problems.append(f"{error.message}: {error.hint}")
        state.problems = [*problems, *registry.reconcile(usable)]
        for problem in state.problems:
            log.warning("%s", problem)

    def _clean_mirrors(self, repos: Sequence[Repo]) -> None:
        """Takes away what a killed git left in the mirrors, and has each configured as this version wants it."""
        mirrors = [self._rooms.mirrors(repo.name) for repo in repos]
        for left in clean_up(self._layout, mirrors):
            log.info("removed %s, left by a killed git", left)
        for repo, mirror in zip(repos, mirrors, strict=True):
            try:
                if mirror.exists():
                    mirror.configure(repo.url)
            except OSError as error:
                # One mirror that is damaged is its own trouble: its refreshes will tell.
                log.error("the mirror of %s cannot be configured: %s", repo.name, error)

    def _open_listeners(self) -> None:
        config = self._state.config.serve
        for name, address in ((GIT, config.git), (HTTP, config.http), (ADMIN, config.admin)):
            if sockets := self._sockets(name, address):
                self._rooms.ports.acceptors[name].start(sockets)
                self._state.urls[name] = url_of(sockets[0], "git" if name == GIT else "http")

    def _sockets(self, name: str, address: Address | None) -> list[socket.socket]:
        if inherited := self._start.sockets.get(name):
            return list(inherited)
        return [listen(address, name)] if address else []

    def _begin_parts(self) -> list[asyncio.Task[None]]:
        """Begins what runs all the while; when one of these ends, so does serve."""
        rooms = self._rooms
        rooms.observing.sinks.apply(self._state.config.events)
        work = {
            "scheduler": rooms.refreshing.scheduler.run(),
            "maintainer": rooms.maintainer.run(),
            "tidy": self._tidy(),
            "activity": rooms.observing.fetches.run(),
            "refreshes": rooms.refreshing.history.run(),
            "retention": rooms.recording.retention.run(),
            "health monitor": rooms.observing.monitor.run(),
            "alerts": rooms.observing.alerts.run(),
        }
        return [self._begin(each, name) for name, each in work.items()]

    def _warm(self) -> None:
        for repo in self._state.repos:
            if repo.enabled:
                self._rooms.fetching.warmer.warm(repo)
                self._rooms.workspaces.refresh(repo)

    # -- reload and stop -----------------------------------------------------------------------------------

    async def _reload(self) -> None:
        """SIGHUP. A config that is wrong changes nothing; addresses and limits of `[serve]` hold until a restart."""
        self._start.notifier.reloading()
        state, rooms = self._state, self._rooms
        try:
            config = self._start.load()
            wanted_of_config(config)
            state.config = replace(config, serve=state.config.serve)
            rooms.refreshing.refresher.timeout = config.refresh.timeout
            rooms.refreshing.refresher.keyring = make_keyring(config)
            # First of all: what became private is served no more, also when the database cannot be read.
            rooms.follower.open_catalog()
            write_git_configs(self._layout, max_push=config.recording.max_push)
            await asyncio.to_thread(self._reconcile)
            await rooms.follower.follow()
            rooms.observing.sinks.apply(config.events)
            log.info("the configuration was read again")
        except GitmirrorError as error:
            log.error("the reload was refused, everything is as before: %s (%s)", error.message, error.hint)
        self._start.notifier.ready(rooms.status.summary())

    async def _stop(self) -> None:
        """Guests first: what runs may finish while refreshes go on; then everything else."""
        rooms, drain = self._rooms, self._state.config.serve.drain_timeout
        log.info("stopping")
        self._start.notifier.stopping(drain + 10)
        acceptors = rooms.ports.acceptors
        await asyncio.gather(*(acceptors[name].stop(drain) for name in (GIT, HTTP)), acceptors[ADMIN].stop(0))
        # What guests got until now is told to whoever still listens.
        await rooms.observing.fetches.settle()
        await self._control.stop()
        await rooms.fetching.warmer.stop()
        await rooms.workspaces.stop()
        await rooms.fetching.cache.stop()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await rooms.recording.pushes.close()
        await rooms.observing.fetches.write()
        await rooms.read_tokens.write()
        await rooms.refreshing.history.write()
        rooms.stores.database.close()

    # -- while it runs -------------------------------------------------------------------------------------

    def _begin(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _on_pass(self) -> None:
        """The scheduler makes progress: only then is the watchdog told so. A hung upstream does not stop its passes."""
        interval, now = self._start.notifier.watchdog_interval, time.monotonic()
        if interval is not None and now - self._watched_at >= min(interval, 1.0):
            self._watched_at = now
            self._start.notifier.watchdog()

    async def _tidy(self) -> None:
        while True:
            await asyncio.sleep(TIDY_EVERY)
            await self._rooms.recording.pushes.tidy()
            await self._rooms.read_tokens.write()
            self._start.notifier.status(self._rooms.status.summary())


def _signals() -> tuple[asyncio.Event, asyncio.Event]:
    """Set by the signals that stop serve, and by the one that has it reload."""
    stop, reload, loop = asyncio.Event(), asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, reload.set)
    return stop, reload


def _control_path(layout: Layout) -> Path:
    """In systemd's RuntimeDirectory when there is one: that is where the operators' group reaches it."""
    runtime = os.environ.get("RUNTIME_DIRECTORY")
    return Path(runtime.partition(":")[0]) / "control.sock" if runtime else layout.control_socket


async def _first(*waits: Awaitable[Any]) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
