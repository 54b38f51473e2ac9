"""Runs refreshes in lanes when they are due, and remembers their results.

The health of every mirror is held here in memory and written to the store later, so that mirrors are still refreshed
and served when the database fails.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from appliance.core.errors import GitmirrorError
from appliance.core.events.facts import Publish, RefreshEnded, RefsMoved
from appliance.core.git.http_trace import MOST_PATIENCE
from appliance.core.models import HeadChange, Health, RefreshOutcome, Repo
from appliance.core.refresh.attempt import attempt, conclude
from appliance.core.refresh.queue import RefreshQueue
from appliance.core.refresh.refresher import followed_ref
from appliance.core.refresh.runs import Progress, RefreshRun
from appliance.core.refresh.schedule import Lane, holds_place, lane_of
from appliance.core.refresh.sources import Source
from appliance.core.refresh.wall_clock import SteadyClock
from appliance.core.store.write_behind import WriteBehind, once_stored

log = logging.getLogger(__name__)

TICK = 1.0
"""The most seconds between two passes; each pass notifies the watchdog."""
PLACE_TICK = 0.2
"""The most seconds between two passes while a due refresh has no slot."""
MOST_RUNNING = 64
"""Once this many refreshes are running, hung ones keep their slots, which bounds the number of processes."""


class Cancelled(GitmirrorError):
    """The repository was disabled or removed, or `serve` stopped, before its refresh was done."""


class LeftAlone(GitmirrorError):
    """The upstream's Retry-After has not passed yet."""


@dataclass(frozen=True)
class Settings:
    """The part of the config that applies to refreshes; a reload replaces it as a whole."""

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
    """`not_before` is when the upstream accepts requests again; `asked` requests a refresh that has yet to begin, with
    `insists` for an operator. So does `heard`, because another node has looked at the upstream."""

    repo: Repo
    health: Health
    due: float
    not_before: float = 0.0
    asked: bool = False
    insists: bool = False
    heard: bool = False
    verified_here: bool = False
    running: _Running | None = None
    waiters: list[asyncio.Future[RefreshOutcome]] | None = None
    progress: Progress | None = None


class Scheduler:
    """Keeps every enabled repository refreshed, and writes what came of it to `history`.

    `on_pass` is called at each pass of the loop.
    """

    def __init__(
        self,
        source: Source,
        settings: Settings,
        history: WriteBehind[RefreshEnded],
        publish: Publish,
        on_pass: Callable[[], None],
    ) -> None:
        self._source = source
        self._settings = settings
        self._history = history
        self._publish = publish
        self._on_pass = on_pass
        self._entries: dict[int, _Entry] = {}
        self._running: dict[int, _Running] = {}
        self._queue = RefreshQueue()
        self._wake = asyncio.Event()
        self._clock = SteadyClock()

    def follow(self, repos: Sequence[Repo], healths: dict[int, Health], settings: Settings) -> None:
        """Replaces the set of followed repositories. A changed interval also applies to refreshes already scheduled."""
        now = time.monotonic()
        self._settings = settings
        for repo_id in self._entries.keys() - {repo.id for repo in repos}:
            self._queue.remove(repo_id)
            self._drop(self._entries.pop(repo_id))
        for repo in repos:
            entry = self._entries.get(repo.id)
            if entry is None:
                entry = self._entries[repo.id] = self._first(repo, healths.get(repo.id, Health()), now)
            else:
                changed_upstream = entry.repo.url != repo.url
                entry.repo = repo
                entry.asked |= changed_upstream
                entry.not_before = 0.0 if changed_upstream else entry.not_before
                entry.due = now if changed_upstream else min(entry.due, now + self._interval(repo))
            if repo.enabled:
                self._enqueue(entry)
            else:
                self._queue.remove(repo.id)
                self._drop(entry)
        self._wake.set()

    def _first(self, repo: Repo, health: Health, now: float) -> _Entry:
        """An entry with its stored due time. An overdue one keeps that time, so that the order is preserved."""
        patience = min(max(0.0, (health.retry_at or 0.0) - time.time()), MOST_PATIENCE)
        wait = min(health.next_due - time.time(), max(self._interval(repo), patience)) if health.cloned else 0.0
        return _Entry(repo, health, due=now + wait, not_before=now + patience)

    def health(self, repo_id: int) -> Health:
        """The current health of a mirror."""
        if (entry := self._entries.get(repo_id)) is None:
            return Health()
        is_cloning = entry.running is not None and not entry.health.cloned
        return replace(entry.health, cloning=True) if is_cloning else entry.health

    def note(self, repo_id: int, **columns: Any) -> None:
        """Updates a mirror's health from outside a refresh: sessions after a push, size after a repack."""
        if entry := self._entries.get(repo_id):
            entry.health = replace(entry.health, **columns)

    def run_of(self, repo_id: int) -> RefreshRun | None:
        """The running refresh of a mirror, or None."""
        running = self._running.get(repo_id)
        return running.run if running else None

    def nudge(self, repo: Repo) -> bool:
        """Requests a refresh without waiting for it. Any number of calls cause at most one more after a running one.

        Retry-After is honoured. Returns False if the repository is not followed.
        """
        entry = self._entries.get(repo.id)
        if entry is None or not entry.repo.enabled:
            return False
        self._ask(entry)
        return True

    def hear(self, repo: Repo) -> None:
        """Requests a refresh with what another node has said of the upstream."""
        if (entry := self._entries.get(repo.id)) is not None and entry.repo.enabled:
            entry.heard = True
            self._enqueue(entry)
            self._wake.set()

    def is_asked(self, repo_id: int) -> bool:
        """Whether another refresh is requested after the running one, if any."""
        entry = self._entries.get(repo_id)
        return entry is not None and entry.asked

    async def refresh_now(
        self, repo: Repo, on_progress: Progress | None = None, *, insist: bool = False
    ) -> RefreshOutcome:
        """Refreshes at once and waits for the outcome. A refresh that is already running began too early to count.

        Raises Cancelled. Raises LeftAlone until Retry-After has passed, except with `insist`, which is for operators.
        """
        entry = self._entries.get(repo.id)
        if entry is None or not entry.repo.enabled:
            raise Cancelled(f"{repo.name} is not followed", hint=f"enable {repo.name}")
        if insist:
            entry.not_before, entry.insists = 0.0, True
        elif (patience := entry.not_before - time.monotonic()) > 0:
            raise LeftAlone(f"the upstream of {repo.name} allows no request for another {patience:.0f}s (Retry-After)")
        if entry.running is not None and not entry.health.cloned:
            # A first clone fetches everything, so callers that arrive meanwhile wait for it.
            entry.running.run.on_progress = on_progress or entry.running.run.on_progress
            return await _joined(entry.running.task, repo)
        future: asyncio.Future[RefreshOutcome] = asyncio.get_running_loop().create_future()
        entry.waiters = [*(entry.waiters or []), future]
        entry.progress = on_progress or entry.progress
        self._ask(entry)
        return await future

    async def run(self) -> None:
        """Refreshes until it is cancelled, and then stops the running refreshes."""
        try:
            while True:
                self._on_pass()
                self._follow_clock()
                wait = self._start_due()
                self._wake.clear()
                try:
                    async with asyncio.timeout(wait):
                        await self._wake.wait()
                except TimeoutError:
                    pass
        finally:
            running = [running.task for running in self._running.values()]
            for entry in self._entries.values():
                self._drop(entry)
            await asyncio.gather(*running, return_exceptions=True)

    def _interval(self, repo: Repo) -> float:
        return repo.interval or self._settings.interval

    def _ask(self, entry: _Entry) -> None:
        entry.asked = True
        self._enqueue(entry)
        self._wake.set()

    def _enqueue(self, entry: _Entry) -> None:
        if entry.running is None:
            is_wanted, now = entry.asked or entry.heard, time.monotonic()
            due = now if entry.heard else max(now if entry.asked else entry.due, entry.not_before)
            last = -math.inf if is_wanted else due + self._interval(entry.repo)
            self._queue.put(entry.repo.id, due, lane_of(entry.health, entry.repo.source), last)

    def _drop(self, entry: _Entry) -> None:
        if entry.running is not None:
            entry.running.task.cancel()
        for waiter in entry.waiters or ():
            if not waiter.done():
                waiter.set_exception(Cancelled(f"{entry.repo.name} is no longer followed"))
        entry.waiters = None

    def _start_due(self) -> float:
        """Starts the due refreshes that have a slot; returns how many seconds to sleep."""
        now = time.monotonic()
        held = dict.fromkeys(Lane, 0)
        for refresh in self._running.values():
            full = len(self._running) >= MOST_RUNNING
            if full or holds_place(now - refresh.since, refresh.run.fetching, refresh.lane):
                held[refresh.lane] += 1
        for lane in Lane:
            for repo_id in self._queue.take(lane, now, self._settings.concurrency - held[lane]):
                self._start(self._entries[repo_id], lane, now)
        # A slot may also come free just because time passes.
        sleep = PLACE_TICK if self._queue.has_ready else TICK
        return max(min(sleep, self._queue.next_due - now), 0.005)

    def _start(self, entry: _Entry, lane: Lane, now: float) -> None:
        waiters, entry.waiters = entry.waiters or [], None
        run = RefreshRun(entry.repo, entry.progress)
        run.asked, run.insists, run.held_back = entry.asked, entry.insists, max(0.0, entry.not_before - now)
        # What is asked for while the upstream is to be left alone is still to be done.
        entry.progress, entry.asked, entry.heard, entry.insists = None, entry.asked and run.held_back > 0, False, False
        name = f"refresh {entry.repo.name}"
        task = asyncio.create_task(self._refresh(entry, run, asked=bool(waiters)), name=name)
        entry.running = self._running[entry.repo.id] = _Running(task, run, lane, now)
        task.add_done_callback(lambda done: self._finished(entry, done, waiters))

    def _finished(
        self, entry: _Entry, done: asyncio.Task[RefreshOutcome], waiters: list[asyncio.Future[RefreshOutcome]]
    ) -> None:
        entry.running = None
        self._running.pop(entry.repo.id, None)
        if entry.not_before > time.monotonic():
            # Answer later callers with this result too, instead of making them wait for as long as Retry-After.
            waiters, entry.waiters = [*waiters, *(entry.waiters or [])], None
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
        if self._entries.get(entry.repo.id) is entry and entry.repo.enabled:
            self._enqueue(entry)
        self._wake.set()

    async def _refresh(self, entry: _Entry, run: RefreshRun, *, asked: bool) -> RefreshOutcome:
        repo, start = entry.repo, time.monotonic()
        # Set first, so that the next refresh is scheduled even if the code below fails.
        entry.due = start + self._interval(repo)
        result = await attempt(self._source, run)
        now, ended_at = time.monotonic(), time.time()
        ended = conclude(
            repo,
            entry.health,
            result,
            interval=self._interval(entry.repo),
            duration=now - start,
            ended_at=ended_at,
            jitter=random.random(),
            asked=asked,
        )
        outcome = ended.outcome
        entry.due, entry.not_before = now + ended.delay, now + ended.patience
        if outcome.error is not None:
            log.warning("%s: refresh failed (%s): %s", repo.name, outcome.kind, outcome.error)
        else:
            entry.verified_here = True
        head = None
        if outcome.error is None and ended.health.head != entry.health.head:
            head = HeadChange(entry.health.head, ended.health.head)
        entry.health = ended.health
        if outcome.moved or head:
            log.info("%s: %d refs moved in %.2fs", repo.name, len(outcome.moved), outcome.duration)
            # Published before anything is awaited: from here on no guest is shown the old refs.
            followed = followed_ref(repo, ended.health.head)
            self._publish(RefsMoved(repo=repo, changes=outcome.moved, head=head, followed=followed))
        event = RefreshEnded(repo=repo, outcome=outcome, health=ended.health, learnt=ended.columns)
        with once_stored(partial(self._publish, event)):
            self._history.add(event)
            if event.is_news:
                await self._history.write()
        return outcome

    def _follow_clock(self) -> None:
        """If the wall clock was set, shifts the times of this process's refreshes by as much, as lag is a duration."""
        step = self._clock.step()
        if step == 0:
            return
        log.warning("the clock was set by %+.1fs", step)
        for entry in self._entries.values():
            verified_at = entry.health.verified_at
            if entry.verified_here and verified_at is not None:
                entry.health = replace(entry.health, verified_at=verified_at + step)


async def _joined(task: asyncio.Task[RefreshOutcome], repo: Repo) -> RefreshOutcome:
    """The outcome of a task that another caller started. Raises Cancelled if it is stopped."""
    await asyncio.wait([task])
    if task.cancelled():
        raise Cancelled(f"the refresh of {repo.name} was stopped")
    return task.result()
