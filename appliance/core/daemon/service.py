"""The life of one `serve`: start in order, follow signals, reload, stop in order."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from appliance.core.config.settings import Config
from appliance.core.daemon.compose import Assembly, assemble
from appliance.core.daemon.control_server import ControlServer
from appliance.core.daemon.handlers import Commands
from appliance.core.daemon.live import Live
from appliance.core.daemon.systemd import Notifier
from appliance.core.errors import GitmirrorError
from appliance.core.layout import Layout
from appliance.core.node.state_dir import (
    clean_up,
    make_git,
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

    _rooms: Assembly
    _live: Live

    def __init__(self, start: Start) -> None:
        self._start = start
        self._layout = start.layout
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
            self._rooms = await assemble(self._layout, config, owned.children, self._begin, self._on_pass)
            self._live = self._rooms.live
            await self._prepare()
            self._open_listeners()
            control = ControlServer(control_path, Commands(self._live).handlers(), self._rooms.stream)
            await control.start()
            parts = [
                self._begin(self._live.scheduler.run(), "scheduler"),
                self._begin(self._rooms.maintainer.run(), "maintainer"),
                self._begin(self._tidy(), "tidy"),
                self._begin(self._rooms.fetches.run(), "fetches"),
                self._begin(self._rooms.history.run(), "history"),
                self._begin(self._rooms.retention.run(), "retention"),
                self._begin(self._rooms.vigil.run(), "vigil"),
                self._begin(self._rooms.alerts.run(), "alerts"),
            ]
            self._rooms.sinks.apply(config.events)
            for part in parts:
                part.add_done_callback(lambda _: stop.set())
            for repo in self._live.repos:
                if repo.enabled:
                    self._live.warmer.warm(repo)
                    self._live.workspaces.refresh(repo)
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

    async def _prepare(self) -> None:
        """Everything that must be true before the first guest: clean mirrors, proved hooks, a settled log."""
        live = self._live
        self._reconcile()
        repos = live.stores.registry.all()
        for left in await asyncio.to_thread(clean_up, self._layout, [live.mirror(repo.name) for repo in repos]):
            log.info("removed %s, left by a killed git", left)
        for repo in repos:
            try:
                if live.mirror(repo.name).exists():
                    live.mirror(repo.name).configure(repo.url)
            except OSError as error:
                # One mirror that is damaged is its own trouble: its refreshes will tell.
                log.error("the mirror of %s cannot be configured: %s", repo.name, error)
        try:
            live.guard.install()
            await live.guard.prove(self._rooms.daemon.command())
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
            self._rooms.refresher.timeout = config.refresh.timeout
            self._rooms.refresher.keyring = make_keyring(config)
            # First of all: what became private is served no more, also when the database cannot be read.
            live.publish()
            make_git(self._layout, config, live.git.children)
            self._reconcile()
            live.follow_registry()
            self._rooms.sinks.apply(config.events)
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
        # What guests got until now is told to whoever still listens.
        await self._rooms.fetches.settle()
        await control.stop()
        await self._live.warmer.stop()
        await self._live.workspaces.stop()
        await self._live.cache.stop()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._live.desk.close()
        await self._rooms.fetches.write()
        await self._rooms.read_tokens.write()
        await self._rooms.history.write()
        self._live.stores.database.close()

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
            await self._live.desk.tidy()
            await self._rooms.read_tokens.write()
            self._start.notifier.status(self._live.summary())


def _control_path(layout: Layout) -> Path:
    """In systemd's RuntimeDirectory when there is one: that is where the operators' group reaches it."""
    runtime = os.environ.get("RUNTIME_DIRECTORY")
    return Path(runtime.partition(":")[0]) / "control.sock" if runtime else layout.control_socket


async def _first(*waits: Awaitable[Any]) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
