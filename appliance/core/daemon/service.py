"""The life of one `serve`: it starts in order, handles signals, reloads, and stops in order."""

from __future__ import annotations

import asyncio
import gc
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
from appliance.core.daemon.api_socket import ApiSocket, api_handler
from appliance.core.daemon.compose import Assembly, compose
from appliance.core.daemon.reshaping import reshape
from appliance.core.daemon.state import ADMIN, GIT, HTTP, ServeState
from appliance.core.daemon.systemd import Notifier
from appliance.core.errors import GitmirrorError
from appliance.core.layout import Layout
from appliance.core.models import Repo
from appliance.core.node.state_dir import (
    clean_up,
    make_git,
    make_keyring,
    make_state,
    wanted_of_config,
)
from appliance.core.process.children import raise_open_files_limit
from appliance.core.process.endurance import Endurance
from appliance.core.process.memory import give_back_memory
from appliance.core.process.owner import SERVE, claim
from appliance.core.serving.net.guest_sockets import KEPT_PREFIX, SocketKeeper
from appliance.core.serving.net.socket_files import SocketFile
from appliance.core.serving.net.sockets import listen_on, shown_address

log = logging.getLogger(__name__)

WAIT_FOR_OWNER = 60.0
"""Seconds that a starting `serve` waits for an `add-repo` that clones without it."""
TIDY_EVERY = 10.0
"""Seconds between two rounds of `_tidy`."""


@dataclass(frozen=True)
class Start:
    """How `serve` was started. `load` reads the config.

    `sockets` are those inherited from systemd, by name; `keeper` is systemd if it keeps sockets for the next start.
    """

    layout: Layout
    load: Callable[[], Config]
    notifier: Notifier
    sockets: Mapping[str, list[socket.socket]] = field(default_factory=dict)
    keeper: SocketKeeper | None = None
    announce: Callable[[str], None] = print


class Service:
    """One `serve`, from start to stop."""

    _state: ServeState
    _rooms: Assembly
    _control: ApiSocket

    def __init__(self, start: Start) -> None:
        self._start = start
        self._layout = start.layout
        self._tasks: set[asyncio.Task[None]] = set()
        self._socket_files: list[SocketFile] = []
        self._watched_at = 0.0
        self._endurance = Endurance(log, "preparing and repairing the node")

    async def run(self) -> None:
        """Serves until SIGTERM or SIGINT; SIGHUP reloads. Raises GitmirrorError if it cannot start or a part dies."""
        stop, reload = _signals()
        self._state = ServeState(self._layout, self._start.load())
        raise_open_files_limit()
        make_state(self._layout)
        control_path = _control_path(self._layout)
        owned = await asyncio.to_thread(claim, self._layout, SERVE, control=control_path, wait=WAIT_FOR_OWNER)
        try:
            if owned.survivors:
                log.warning("ended %d processes that an earlier serve left", owned.survivors)
            self._rooms = await compose(self._state, owned.children, self._begin, self._on_pass, self._start.keeper)
            self._control = ApiSocket(control_path, api_handler(self._rooms.api, is_operator=True))
            await self._prepare()
            self._open_listeners()
            await self._open_guests()
            await self._open_control()
            parts = self._begin_parts()
            for part in parts:
                part.add_done_callback(lambda _: stop.set())
            self._warm()
            self._start.announce(self._state.ready_line())
            self._start.notifier.ready(self._rooms.status.summary())
            # A full round of the collector would look at all of it again for 23 to 34 ms, and no guest is served then.
            gc.freeze()
            give_back_memory()
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
        """Cleans the mirrors, proves the hooks and settles the audit log before the first guest arrives.

        A step that fails disables only what depends on it (one repository, pushes, or workspaces), never the start.
        """
        self._rooms.workspaces.look()
        await self._rooms.follower.follow_config()
        await asyncio.to_thread(self._clean_mirrors, self._state.repos)
        # Before anything is built, because only then it is certain what a kill left.
        await self._rooms.disks.tidy()
        await self._rooms.lfs.start(self._rooms.mirrors.on_disk())
        await self._rooms.allowed.finish_ends()
        await self._prove_guard()
        await asyncio.to_thread(self._rooms.stores.database.examine)
        await self._settle()
        await self._rooms.observing.push_watch.look()

    async def _prove_guard(self) -> None:
        guard = self._rooms.recording.guard
        with self._endurance.over("the hooks"):
            guard.install()
            await guard.prove(self._rooms.daemon.command())

    async def _settle(self) -> None:
        with self._endurance.over("push attempts that an earlier serve left open"):
            if settled := await self._rooms.recording.pushes.settle():
                log.warning("settled %d push attempts that an earlier serve left open", settled)

    async def _open_control(self) -> None:
        """Opens the control socket. If that fails, commands cannot reach `serve`, but guests are still served."""
        with self._endurance.over("the control socket"):
            await self._control.start()

    def _clean_mirrors(self, repos: Sequence[Repo]) -> None:
        """Removes what a killed git left in the mirrors, and writes the git config that this version needs."""
        mirrors = [self._rooms.mirrors(repo.name) for repo in repos]
        for leftover in clean_up(self._layout, mirrors):
            log.info("removed %s, left by a killed git", leftover)
        for repo, mirror in zip(repos, mirrors, strict=True):
            try:
                if mirror.exists():
                    mirror.configure(repo.url)
            except OSError as error:
                # A damaged mirror must not stop the others. Its refreshes will report the error.
                log.error("the mirror of %s cannot be configured: %s", repo.name, error)

    def _open_listeners(self) -> None:
        config = self._state.config.serve
        for name, addresses in ((GIT, config.git), (HTTP, config.http), (ADMIN, config.admin)):
            scheme = "git" if name == GIT else "http"
            inherited = self._start.sockets.get(name, ())
            sockets = {listening: shown_address(listening, scheme) for listening in inherited}
            if not sockets:
                sockets, socket_files = listen_on(addresses, name, scheme)
                self._socket_files += socket_files
            self._rooms.acceptors[name].start(list(sockets))
            self._state.listen(name, sockets.values(), is_inherited=bool(inherited))

    async def _open_guests(self) -> None:
        """Opens the sockets of known guests. Without a database, nobody is known until it can be read."""
        with self._endurance.over("the known guests"):
            kept = {name: kept[0] for name, kept in self._start.sockets.items() if name.startswith(KEPT_PREFIX)}
            await self._rooms.guests.open(kept)

    def _begin_parts(self) -> list[asyncio.Task[None]]:
        """Starts the background loops. If one of them ends, `serve` ends too."""
        rooms = self._rooms
        rooms.observing.sinks.apply(self._state.config.events)
        work = {
            "scheduler": rooms.refreshing.scheduler.run(),
            "maintainer": rooms.maintainer.run(),
            "check of cached files": rooms.scrub.run(),
            "disk budget": rooms.budget.run(),
            "tidy": self._tidy(),
            "refreshes": rooms.refreshing.history.run(),
            "retention": rooms.recording.retention.run(),
            "index of turns": rooms.recording.index.run(),
            "backups": rooms.backups.run(),
            "integrity": rooms.integrity.run(),
            "known guests": rooms.guests.run(),
            "allowed repositories": rooms.allowed.run(),
            **{name: loop() for name, loop in {**rooms.observing.loops, **rooms.fleet.loops}.items()},
        }
        return [self._begin(loop, name) for name, loop in work.items()]

    def _warm(self) -> None:
        """Prepares responses, snapshots and disks of every enabled repository before guests ask for them."""
        for repo in self._state.repos:
            # One that was never cloned has nothing to prepare; its first clone does this again.
            if repo.enabled and os.path.isdir(self._layout.mirror(repo.name)):
                self._rooms.fetching.warmer.warm(repo)
                self._rooms.workspaces.refresh(repo)
                self._rooms.disks.refresh(repo)

    # -- reload and stop -----------------------------------------------------------------------------------

    async def _reload(self) -> None:
        """Handles SIGHUP. An invalid config changes nothing. `[serve]` and `[fleet]` need a restart."""
        self._start.notifier.reloading()
        state, rooms, before = self._state, self._rooms, self._state.config
        try:
            config = self._start.load()
            wanted_of_config(config)
            state.config = replace(config, serve=state.config.serve, fleet=state.config.fleet)
            rooms.refreshing.refresher.timeout = config.refresh.timeout
            rooms.refreshing.refresher.keyring = make_keyring(config)
            rooms.fetching.cache.set_budget(config.cache.budget)
            # Done first, so that a repository that became private is hidden even if the database cannot be read.
            rooms.follower.open_catalog()
            make_git(self._layout, config, rooms.mirrors.git.children)
            await rooms.lfs.stock.set_budget(config.cache.lfs_budget)
            await rooms.follower.follow_new_config()
            rooms.observing.sinks.apply(config.events)
            reshape(rooms.workspaces, state.repos, before, state.config)
            log.info("the configuration was read again")
        except GitmirrorError as error:
            log.error("the reload was refused, nothing has changed: %s (%s)", error.message, error.hint)
        self._start.notifier.ready(rooms.status.summary())

    async def _stop(self) -> None:
        """Stops accepting guests and lets running requests finish while refreshes continue; then stops the rest."""
        rooms, drain = self._rooms, self._state.config.serve.drain_timeout
        log.info("stopping")
        self._start.notifier.stopping(drain + 10)
        rooms.guests.sockets.close_all()
        for socket_file in self._socket_files:
            socket_file.remove()
        seconds = {GIT: drain, HTTP: drain, ADMIN: 0.0}
        await asyncio.gather(*(rooms.acceptors[name].stop(most) for name, most in seconds.items()))
        # Report the fetches that have ended while subscribers of the event stream are still connected.
        await rooms.observing.fetches.settle()
        await self._control.stop()
        await rooms.on_demand.stop()
        await rooms.operations.settle()
        await rooms.fetching.warmer.stop()
        await rooms.workspaces.stop()
        await rooms.disks.stop()
        await rooms.lfs.stop()
        await asyncio.gather(rooms.fetching.cache.stop(), rooms.fleet.finish())
        for task in (tasks := list(self._tasks)):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await rooms.recording.pushes.close()
        await rooms.observing.write_last()
        await rooms.read_tokens.write()
        await rooms.api_tokens.write()
        await rooms.allowed.write_last()
        await rooms.refreshing.history.write()
        rooms.stores.database.close()

    def _begin(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _on_pass(self) -> None:
        """Pings the watchdog after a pass of the scheduler. A hung upstream does not stop its passes."""
        interval, now = self._start.notifier.watchdog_interval, time.monotonic()
        if interval is not None and now - self._watched_at >= min(interval, 1.0):
            self._watched_at = now
            self._start.notifier.watchdog()

    async def _tidy(self) -> None:
        chores: dict[str, Callable[[], Awaitable[None]]] = {
            "pushes": self._rooms.recording.pushes.tidy,
            "read tokens": self._rooms.read_tokens.write,
            "API tokens": self._rooms.api_tokens.write,
            "disks": self._rooms.disks.tidy,
            "recovery": self._recover,
        }
        while True:
            await asyncio.sleep(TIDY_EVERY)
            for name, chore in chores.items():
                with self._endurance.over(name):
                    await chore()
            with self._endurance.over("the status line for systemd"):
                self._start.notifier.status(self._rooms.status.summary())
            # A burst of guests leaves free pages between what stays in use. This takes under a millisecond.
            give_back_memory()

    async def _recover(self) -> None:
        """Tries again whatever could not be used, and resumes it if it can be used now."""
        workspaces, cache, recording = self._rooms.workspaces, self._rooms.fetching.cache, self._rooms.recording
        if cache.trouble:
            cache.look()
        if self._rooms.stores.database.damage is not None:
            await asyncio.to_thread(self._rooms.stores.database.examine)
        if (workspaces.trouble and workspaces.look()) or await self._found_registry():
            self._warm()
        await self._rooms.lfs.recover(self._rooms.mirrors.on_disk())
        if recording.guard.may_recover:
            await self._prove_guard()
        if not recording.pushes.is_settled:
            await self._settle()
        if not self._control.is_open:
            await self._open_control()

    async def _found_registry(self) -> bool:
        """Reads or reconciles the registry again if that failed before. Returns whether it did so and can read it."""
        state, rooms = self._state, self._rooms
        was_lost = state.registry_lost is not None
        if not was_lost and (rooms.follower.is_reconciled or rooms.observing.push_watch.off is not None):
            return False
        await rooms.follower.follow_config()
        if was_lost and state.registry_lost is None:
            log.warning("the registry can be read again")
            await rooms.observing.alerts.load()
        return state.registry_lost is None


def _signals() -> tuple[asyncio.Event, asyncio.Event]:
    """Returns two events: `stop`, set by SIGTERM or SIGINT, and `reload`, set by SIGHUP."""
    stop, reload, loop = asyncio.Event(), asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, reload.set)
    return stop, reload


def _control_path(layout: Layout) -> Path:
    """The socket's path: in systemd's RuntimeDirectory if set, because the operators' group can reach it there."""
    runtime = os.environ.get("RUNTIME_DIRECTORY")
    return Path(runtime.partition(":")[0]) / "control.sock" if runtime else layout.control_socket


async def _first(*waits: Awaitable[Any]) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
