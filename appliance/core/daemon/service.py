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
from appliance.core.daemon.wiring import Events
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
from appliance.core.process.endurance import Endurance
from appliance.core.process.owner import SERVE, claim
from appliance.core.serving.net.sockets import listen, url_of
from appliance.core.store.database import StoreError
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
    _control: ControlServer

    def __init__(self, start: Start) -> None:
        self._start = start
        self._layout = start.layout
        self._tasks: set[asyncio.Task[None]] = set()
        self._watched_at = 0.0
        self._is_reconciled = True
        self._endurance = Endurance(log, "what serve needs")

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
            events = Events(self._begin)
            self._rooms = await assemble(self._layout, config, owned.children, events, self._on_pass)
            self._live = self._rooms.live
            await self._prepare()
            self._open_listeners()
            self._control = ControlServer(control_path, Commands(self._live).handlers(), events.feed)
            await self._open_control()
            parts = [
                self._begin(self._live.scheduler.run(), "scheduler"),
                self._begin(self._rooms.maintainer.run(), "maintainer"),
                self._begin(self._tidy(), "tidy"),
                self._begin(self._rooms.activity.run(), "activity"),
                self._begin(self._rooms.refreshes.run(), "refreshes"),
                self._begin(self._rooms.retention.run(), "retention"),
                self._begin(self._rooms.vigil.run(), "vigil"),
                self._begin(self._rooms.alerts.run(), "alerts"),
                self._begin(self._rooms.push_watch.run(), "watch on pushes"),
            ]
            self._rooms.sinks.apply(config.events)
            for part in parts:
                part.add_done_callback(lambda _: stop.set())
            self._live.warm()
            self._start.announce(self._live.ready_line())
            self._start.notifier.ready(self._live.summary())
            while not stop.is_set():
                await _first(stop.wait(), reload.wait())
                if reload.is_set():
                    reload.clear()
                    self._reload()
            died = [part for part in parts if part.done()]
            await self._stop()
        finally:
            await owned.children.end_all()
            owned.release()
        for part in died:
            raise GitmirrorError(f"the {part.get_name()} died: {part.exception()!r}", hint="see the log above")

    # -- start ---------------------------------------------------------------------------------------------

    async def _prepare(self) -> None:
        """Everything that is done before the first guest: clean mirrors, proved hooks, a settled log.

        What cannot be done costs what needs it: a repository, pushes, workspaces; never the others, never the start.
        """
        live = self._live
        live.workspaces.look()
        await self._follow()
        repos = live.repos
        for left in await asyncio.to_thread(clean_up, self._layout, [live.mirror(repo.name) for repo in repos]):
            log.info("removed %s, left by a killed git", left)
        for repo in repos:
            try:
                if live.mirror(repo.name).exists():
                    live.mirror(repo.name).configure(repo.url)
            except OSError as error:
                # One mirror that is damaged is its own trouble: its refreshes will tell.
                log.error("the mirror of %s cannot be configured: %s", repo.name, error)
        await self._prove_guard()
        await self._settle()
        await live.push_watch.look()

    async def _prove_guard(self) -> None:
        guard = self._live.guard
        with self._endurance.over("the hooks"):
            guard.install()
            await guard.prove(self._rooms.daemon.command())

    async def _settle(self) -> None:
        with self._endurance.over("push attempts that an earlier serve left open"):
            if settled := await self._live.desk.settle():
                log.warning("settled %d push attempts that an earlier serve left open", settled)

    async def _follow(self) -> None:
        """Follows the registry with the config's list in it; without a database, what the config and mirrors give."""
        live = self._live
        try:
            # In a thread first: one that is only locked for a while must not hold up everything.
            await asyncio.to_thread(live.stores.registry.all)
            self._try_to_reconcile()
            live.follow_registry()
        except StoreError as error:
            if live.registry_lost is None:
                log.error("the registry cannot be read: %s (%s)", error.message, error.hint)
                live.problems = live.config.warnings()
                live.follow_salvaged(error)

    def _try_to_reconcile(self) -> None:
        """On a full disk the registry can be read and not changed; it is followed as it is then."""
        try:
            self._reconcile()
            self._is_reconciled = True
        except StoreError as error:
            self._is_reconciled = False
            self._live.problems = [*self._live.config.warnings(), f"the config's list is not followed: {error.message}"]
            log.error("the config's list is not followed: %s", error.message)

    async def _open_control(self) -> None:
        """Without it commands do not find serve; guests do."""
        with self._endurance.over("the control socket"):
            await self._control.start()

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
            if live.registry_lost is not None:
                live.follow_salvaged(live.registry_lost)
            else:
                self._reconcile()
                live.follow_registry()
            self._rooms.sinks.apply(config.events)
            log.info("the configuration was read again")
        except GitmirrorError as error:
            log.error("the reload was refused, everything is as before: %s (%s)", error.message, error.hint)
        self._start.notifier.ready(live.summary())

    async def _stop(self) -> None:
        """Guests first: what runs may finish while refreshes go on; then everything else."""
        drain = self._live.config.serve.drain_timeout
        log.info("stopping")
        self._start.notifier.stopping(drain + 10)
        acceptors = self._live.acceptors
        await asyncio.gather(*(acceptors[name].stop(drain) for name in ("git", "http")), acceptors["admin"].stop(0))
        await self._control.stop()
        await self._live.warmer.stop()
        await self._live.workspaces.stop()
        await self._live.cache.stop()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._live.desk.close()
        await self._rooms.activity.write()
        await self._rooms.read_tokens.write()
        await self._rooms.refreshes.write()
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
        chores: dict[str, Callable[[], Awaitable[None]]] = {
            "pushes": self._live.desk.tidy,
            "read tokens": self._rooms.read_tokens.write,
            "what could not be used": self._recover,
        }
        while True:
            await asyncio.sleep(TIDY_EVERY)
            for name, chore in chores.items():
                with self._endurance.over(name):
                    await chore()
            with self._endurance.over("systemd's line"):
                self._start.notifier.status(self._live.summary())

    async def _recover(self) -> None:
        """Takes up again what could not be used and now can be."""
        live = self._live
        if live.cache.trouble:
            live.cache.look()
        if (live.workspaces.trouble and live.workspaces.look()) or await self._found_registry():
            live.warm()
        if live.guard.may_recover:
            await self._prove_guard()
        if not live.desk.is_settled:
            await self._settle()
        if not self._control.is_open:
            await self._open_control()

    async def _found_registry(self) -> bool:
        """Whether the registry was lost and is read again, or can take the config's list now."""
        live, was_lost = self._live, self._live.registry_lost is not None
        if not was_lost and (self._is_reconciled or live.push_watch.off is not None):
            return False
        await self._follow()
        if was_lost and live.registry_lost is None:
            log.warning("the registry can be read again")
            await self._rooms.alerts.load()
        return live.registry_lost is None


def _control_path(layout: Layout) -> Path:
    """In systemd's RuntimeDirectory when there is one: that is where the operators' group reaches it."""
    runtime = os.environ.get("RUNTIME_DIRECTORY")
    return Path(runtime.partition(":")[0]) / "control.sock" if runtime else layout.control_socket


async def _first(*waits: Awaitable[Any]) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
