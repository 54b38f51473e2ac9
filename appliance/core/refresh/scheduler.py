"""Runs refreshes when they are due, in lanes, and remembers what came of them.

The health of every mirror is held here in memory and written behind to the store: when the database fails,
mirrors are still followed and served.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from appliance.core.errors import GitmirrorError
from appliance.core.models import Health, RefreshOutcome, RefsMoved, Repo
from appliance.core.refresh.refresher import MirrorFacts, Progress, Refresher, RefreshRun
from appliance.core.refresh.schedule import Lane, delay_after, holds_place, lane_of

log = logging.getLogger(__name__)

TICK = 1.0
"""Seconds between two passes at most; the watchdog is told of each."""

PLACE_TICK = 0.2
"""Seconds between two passes at most while something that is due has no place."""

MOST_RUNNING = 64
"""Past so many refreshes at once, hung ones keep their places: processes are bounded too."""


class Cancelled(GitmirrorError):
    """The repository was disabled or removed, or serve stopped, before its refresh was done."""


class Record(Protocol):
    """Writes one outcome and the health columns it changed to the store, off the loop."""

    def __call__(self, repo_id: int, outcome: RefreshOutcome, /, **columns: Any) -> Awaitable[None]: ...


@dataclass(frozen=True)
class Settings:
    """The part of the config that refreshes follow; replaced as a whole by a reload."""

    interval: float
    concurrency: int


@dataclass
class _Running:
    task: asyncio.Task[RefreshOutcome]
    run: RefreshRun
    lane: Lane
    since: float


@dataclass
class _Entry:
    repo: Repo
    health: Health
    due: float
    running: _Running | None = None
    waiters: list[asyncio.Future[RefreshOutcome]] | None = None
    progress: Progress | None = None


class Scheduler:
    """Keeps every enabled repository refreshed.

    `on_pass` is called at each pass of the loop, `on_moved` when refs moved.
    """

    def __init__(
        self,
        refresher: Refresher,
        settings: Settings,
        record: Record,
        *,
        on_moved: Callable[[RefsMoved], Awaitable[None]],
        on_pass: Callable[[], None],
    ) -> None:
        self._refresher = refresher
        self._settings = settings
        self._record = record
        self._on_moved = on_moved
        self._on_pass = on_pass
        self._entries: dict[int, _Entry] = {}
        self._wake = asyncio.Event()

    def follow(self, repos: Sequence[Repo], healths: dict[int, Health], settings: Settings) -> None:
        """Makes `repos` what is followed. A changed interval holds at once, for what is already scheduled too."""
        now = time.monotonic()
        self._settings = settings
        gone = self._entries.keys() - {repo.id for repo in repos}
        for repo_id in gone:
            self._drop(self._entries.pop(repo_id))
        for repo in repos:
            entry = self._entries.get(repo.id)
            if entry is None:
                health = healths.get(repo.id, Health())
                wait = min(max(0.0, health.next_due - time.time()), self._interval(repo))
                self._entries[repo.id] = _Entry(repo, health, due=now + (wait if health.cloned else 0.0))
                continue
            changed_upstream = entry.repo.url != repo.url
            entry.repo = repo
            entry.due = now if changed_upstream else min(entry.due, now + self._interval(repo))
            if not repo.enabled:
                self._drop(entry)
        self._wake.set()

    def health(self, repo_id: int) -> Health:
        """What is known of a mirror now."""
        entry = self._entries.get(repo_id)
        if entry is None:
            return Health()
        return replace(entry.health, cloning=entry.running is not None and not entry.health.cloned)

    def note(self, repo_id: int, **columns: Any) -> None:
        """Updates what is known of a mirror from elsewhere: sessions after a push, size after a repack."""
        if entry := self._entries.get(repo_id):
            entry.health = replace(entry.health, **columns)

    async def refresh_now(self, repo: Repo, on_progress: Progress | None = None) -> RefreshOutcome:
        """Refreshes out of turn and waits. One that is already running began too early to count. Raises Cancelled."""
        entry = self._entries.get(repo.id)
        if entry is None or not entry.repo.enabled:
            raise Cancelled(f"{repo.name} is not followed", hint=f"enable {repo.name}")
        future: asyncio.Future[RefreshOutcome] = asyncio.get_running_loop().create_future()
        if entry.running is not None and not entry.health.cloned:
            # A first clone takes everything there is, so whoever asks meanwhile joins it.
            entry.running.run.on_progress = on_progress or entry.running.run.on_progress
            return await _joined(entry.running.task, repo)
        entry.waiters = [*(entry.waiters or []), future]
        entry.progress = on_progress or entry.progress
        entry.due = 0.0
        self._wake.set()
        return await future

    async def run(self) -> None:
        """The loop; ends by being cancelled, and ends the refreshes under way then."""
        try:
            while True:
                self._on_pass()
                wait = self._start_due()
                self._wake.clear()
                try:
                    async with asyncio.timeout(wait):
                        await self._wake.wait()
                except TimeoutError:
                    pass
        finally:
            running = [entry.running.task for entry in self._entries.values() if entry.running]
            for entry in self._entries.values():
                self._drop(entry)
            await asyncio.gather(*running, return_exceptions=True)

    def _interval(self, repo: Repo) -> float:
        return repo.interval or self._settings.interval

    def _drop(self, entry: _Entry) -> None:
        if entry.running is not None:
            entry.running.task.cancel()
        for waiter in entry.waiters or ():
            if not waiter.done():
                waiter.set_exception(Cancelled(f"{entry.repo.name} is no longer followed"))
        entry.waiters = None

    def _start_due(self) -> float:
        """Starts what is due and has a place; returns how long to sleep."""
        now = time.monotonic()
        running = [entry.running for entry in self._entries.values() if entry.running]
        held = dict.fromkeys(Lane, 0)
        for refresh in running:
            if len(running) >= MOST_RUNNING or holds_place(now - refresh.since, refresh.run.fetching, refresh.lane):
                held[refresh.lane] += 1
        sleep = TICK
        for entry in sorted(self._entries.values(), key=lambda entry: entry.due):
            if entry.due > now:
                sleep = min(sleep, entry.due - now)
                break
            if entry.running is not None or not entry.repo.enabled:
                continue
            lane = lane_of(entry.health)
            if held[lane] < self._settings.concurrency:
                held[lane] += 1
                self._start(entry, lane, now)
            else:
                # A place comes free by time alone too.
                sleep = min(sleep, PLACE_TICK)
        return max(sleep, 0.005)

    def _start(self, entry: _Entry, lane: Lane, now: float) -> None:
        waiters, entry.waiters = entry.waiters or [], None
        run = RefreshRun(entry.repo, entry.progress)
        entry.progress = None
        task = asyncio.create_task(self._refresh(entry, run), name=f"refresh {entry.repo.name}")
        entry.running = _Running(task, run, lane, now)

        def finished(done: asyncio.Task[RefreshOutcome]) -> None:
            entry.running = None
            for waiter in waiters:
                if waiter.done():
                    continue
                if done.cancelled():
                    waiter.set_exception(Cancelled(f"the refresh of {entry.repo.name} was stopped"))
                elif error := done.exception():
                    waiter.set_exception(error)
                else:
                    waiter.set_result(done.result())
            if not done.cancelled() and done.exception():
                log.error("refresh of %s: %r", entry.repo.name, done.exception(), exc_info=done.exception())
            self._wake.set()

        task.add_done_callback(finished)

    async def _refresh(self, entry: _Entry, run: RefreshRun) -> RefreshOutcome:
        repo, started_at, start = entry.repo, time.time(), time.monotonic()
        facts: MirrorFacts | None = None
        error: str | None = None
        try:
            facts = await self._refresher.refresh(run)
        except GitmirrorError as failure:
            error = failure.message
            log.warning("%s: refresh failed: %s", repo.name, error)
        except Exception as failure:
            # Whatever it is, it is this repository's trouble and no other's.
            error = f"unexpected {type(failure).__name__}: {failure}"
            log.exception("%s: refresh failed", repo.name)
        finally:
            failures = 0 if facts else entry.health.failures + 1
            delay = delay_after(self._interval(entry.repo), failures, random.random())
            # A waiter that came meanwhile has set the time to 0 and keeps it.
            entry.due = entry.due if entry.waiters else time.monotonic() + delay
        moved = facts.moved if facts else ()
        outcome = RefreshOutcome(repo.name, started_at, time.monotonic() - start, moved, error)
        columns: dict[str, Any] = {"checked_at": started_at, "last_error": error, "failures": failures}
        if facts is not None:
            columns = facts.columns(started_at)
        columns["next_due"] = time.time() + delay
        turned = facts is not None and columns["head"] != entry.health.head
        entry.health = replace(entry.health, **columns)
        await self._record(repo.id, outcome, **columns)
        if moved or turned:
            log.info("%s: %d refs moved in %.2fs", repo.name, len(moved), outcome.duration)
            await self._on_moved(RefsMoved(repo, moved))
        return outcome


async def _joined(task: asyncio.Task[RefreshOutcome], repo: Repo) -> RefreshOutcome:
    """The outcome of a task that is somebody else's. Raises Cancelled when it is stopped."""
    await asyncio.wait([task])
    if task.cancelled():
        raise Cancelled(f"the refresh of {repo.name} was stopped")
    return task.result()
