"""Watches the mirrors of one `serve`: looks, inspects and heals, one mirror at a time and at low priority."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from operator import itemgetter
from typing import Any, TypeVar

from appliance.core.errors import GitmirrorError
from appliance.core.events.facts import (
    DamageSuspected,
    MirrorHealed,
    Publish,
    RefreshEnded,
    RefsMoved,
    RegistryChanged,
    SessionsEnded,
)
from appliance.core.git.failures import Kind
from appliance.core.integrity.examination import Examination, Examiner, healed_columns
from appliance.core.integrity.healing import Healing
from appliance.core.integrity.inspection import Inspection
from appliance.core.integrity.schedule import is_due, is_full, pause_after_heals, pause_after_suspicions
from appliance.core.models import Health, Repo
from appliance.core.process.endurance import Endurance
from appliance.core.text import escape, storable

log = logging.getLogger(__name__)

Result = TypeVar("Result")
Work = Callable[[Repo], Coroutine[Any, Any, None]]

TICK = 5.0
"""The most seconds between two passes."""
LOOK_EVERY = 3600.0
"""Seconds between two looks at a mirror whose refs do not move."""
TRY_AGAIN = 1800.0
"""Seconds after which an inspection that could not be finished is tried again."""
CHECK_AGAIN = 300.0
"""Seconds between two inspections of a mirror that was healed, or of a damaged one after a session was ended."""
STILL_TRUE = 600.0
"""Seconds for which a heal relies on the last inspection; after that it inspects again."""
FIRST_LOOKS = 60.0
"""Seconds over which the first looks after a start are spread."""
HEALS_KEPT = 8


@dataclass
class _Watched:
    """What is known about one mirror besides its health. Times are monotonic, but those of heals are Unix seconds."""

    repo: Repo
    look_at: float
    suspicion: str | None = None
    suspect_from: float = 0.0
    unfounded: int = 0
    inspect_from: float = 0.0
    found: tuple[float, Inspection] | None = None
    """The damage that was found, with the time, until a heal is tried."""
    check_again: bool = False
    """Whether to inspect the content: after a heal, and when lost recordings may have been given up."""
    heals: deque[float] = field(default_factory=lambda: deque(maxlen=HEALS_KEPT))
    heal_from: float = 0.0


class IntegrityWatch:
    """Watches the enabled mirrors of `repos()`. `health` gives what is known of one; `learn` stores columns of it."""

    def __init__(
        self,
        examiner: Examiner,
        repos: Callable[[], list[Repo]],
        health: Callable[[int], Health],
        learn: Callable[..., Awaitable[None]],
        publish: Publish,
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._examiner = examiner
        self._repos = repos
        self._health = health
        self._learn = learn
        self._publish = publish
        self._clock = clock
        self._steady = steady
        self._began = clock()
        self._known: dict[int, _Watched] = {}
        self._one_at_a_time = asyncio.Lock()
        self._current: tuple[int, asyncio.Task[Any]] | None = None
        self._wake_looks, self._wake_work = asyncio.Event(), asyncio.Event()

    # -- reports from other parts ----------------------------------------------------------------------------

    def moved(self, event: RefsMoved) -> None:
        """Schedules a look at a mirror, because a refresh changed it."""
        self._watched(event.repo).look_at = 0.0
        self._wake_looks.set()

    def refreshed(self, event: RefreshEnded) -> None:
        """Suspects a mirror whose refresh failed because of the mirror itself."""
        if event.outcome.kind == Kind.MIRROR:
            self._suspect(event.repo, event.outcome.error or "")

    def suspected(self, event: DamageSuspected) -> None:
        """Suspects a mirror after git printed an error that damage would explain."""
        repo = next((repo for repo in self._repos() if repo.name == event.mirror), None)
        if repo is not None:
            self._suspect(repo, event.words)

    def sessions_ended(self, event: SessionsEnded) -> None:
        """Schedules another inspection of a damaged mirror, because its lost recordings may have been given up."""
        if self._health(event.repo.id).damage:
            self._watched(event.repo).check_again = True
            self._wake_work.set()

    def follow(self, event: RegistryChanged) -> None:
        """Forgets the repositories that are gone, and stops any work on them, because a purge waits for it."""
        for repo in event.gone:
            self._known.pop(repo.id, None)
            if self._current is not None and self._current[0] == repo.id:
                self._current[1].cancel()

    def _suspect(self, repo: Repo, words: str) -> None:
        is_examined = self._current is not None and self._current[0] == repo.id
        if is_examined or not self._is_watched(repo) or self._health(repo.id).damage:
            return
        watched = self._watched(repo)
        if watched.suspicion is None:
            watched.suspicion = words
            log.warning("%s: git reports damage, so the mirror is inspected: %s", repo.name, escape(words))
            self._wake_work.set()

    # -- commands ------------------------------------------------------------------------------------------

    async def inspect(self, repo: Repo, *, full: bool) -> Examination:
        """Inspects a mirror as soon as no other one is being inspected. Damage is healed afterwards.

        Raises GitmirrorError if it cannot be done.
        """
        return await self._alone(repo, lambda: self._inspect(repo, full=full))

    async def heal(self, repo: Repo) -> Healing | None:
        """Inspects the content of a mirror now and heals it. None if it is not damaged. Raises GitmirrorError."""

        async def work() -> Healing | None:
            examined = await self._inspect(repo, full=True)
            return await self._heal(repo, examined.found) if examined.found.damage else None

        return await self._alone(repo, work)

    # -- the loops -----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """The loops; end by being cancelled."""
        async with asyncio.TaskGroup() as loops:
            loops.create_task(self._loop(self._wake_looks, self._look_where_due), name="looks at mirrors")
            loops.create_task(self._loop(self._wake_work, self._work_where_due), name="inspections of mirrors")

    async def _loop(self, wake: asyncio.Event, work: Callable[[Endurance], Awaitable[None]]) -> None:
        endurance = Endurance(log, "checking whether it is whole")
        while True:
            wake.clear()
            await work(endurance)
            try:
                async with asyncio.timeout(TICK):
                    await wake.wait()
            except TimeoutError:
                pass

    async def _look_where_due(self, endurance: Endurance) -> None:
        for watched in self._all():
            if watched.look_at <= self._steady() and not self._health(watched.repo.id).damage:
                # Set first, so that an error does not cause a second look immediately.
                watched.look_at = self._steady() + LOOK_EVERY
                with endurance.over(watched.repo.name):
                    await self._look(watched.repo)

    async def _look(self, repo: Repo) -> None:
        found = await self._examiner.look(repo)
        if found.damage is not None and self._is_watched(repo):
            await self._found(repo, found, {"damage": storable(found.damage)})

    async def _work_where_due(self, endurance: Endurance) -> None:
        while (due := self._most_urgent()) is not None:
            _, repo, work = due
            with endurance.over(repo.name):
                await self._alone(repo, partial(work, repo))

    def _most_urgent(self) -> tuple[int, Repo, Work] | None:
        """What to do next: heals first, then what somebody may be waiting for, then the inspections of the night."""
        return min((due for due in map(self._due, self._all()) if due is not None), key=itemgetter(0), default=None)

    def _due(self, watched: _Watched) -> tuple[int, Repo, Work] | None:
        repo, health, now = watched.repo, self._health(watched.repo.id), self._steady()
        if health.damage and watched.heal_from <= now:
            return 0, repo, self._mend
        if watched.check_again and watched.inspect_from <= now:
            return 1, repo, self._check_again
        if health.damage:
            return None
        if watched.suspicion is not None:
            return (1, repo, self._follow_suspicion) if watched.suspect_from <= now else None
        is_nights_turn = watched.inspect_from <= now and is_due(repo, health, self._clock(), self._began)
        return (2, repo, self._inspect_by_night) if is_nights_turn else None

    async def _inspect_by_night(self, repo: Repo) -> None:
        self._watched(repo).inspect_from = self._steady() + TRY_AGAIN
        await self._inspect(repo, full=is_full(repo, self._health(repo.id), self._clock()))

    async def _follow_suspicion(self, repo: Repo) -> None:
        """Inspects refs and links, then the content too, because git's message does not say which is damaged."""
        watched = self._watched(repo)
        watched.suspect_from = self._steady() + TRY_AGAIN
        start = self._steady()
        examined = await self._inspect(repo, full=False)
        if examined.found.damage is None:
            examined = await self._inspect(repo, full=True)
        watched.suspicion = None
        if examined.found.damage is None:
            watched.unfounded += 1
            pause = pause_after_suspicions(watched.unfounded, self._steady() - start)
            watched.suspect_from = self._steady() + pause
            log.info("%s is not damaged; further suspicions wait for %.0fs", repo.name, pause)

    async def _mend(self, repo: Repo) -> None:
        """Heals the damage that was just found. After a restart or a heal that did not suffice, inspects first."""
        watched = self._watched(repo)
        # Set first, so that an inspection that fails does not cause another one immediately.
        watched.heal_from = self._steady() + pause_after_heals([*watched.heals, self._clock()], self._clock())
        if watched.found is not None and self._steady() - watched.found[0] < STILL_TRUE:
            found = watched.found[1]
        else:
            found = (await self._inspect(repo, full=True)).found
        if found.damage is not None:
            await self._heal(repo, found)

    async def _check_again(self, repo: Repo) -> None:
        watched = self._watched(repo)
        watched.check_again, watched.inspect_from = False, self._steady() + CHECK_AGAIN
        await self._inspect(repo, full=True)

    # -- the work on one mirror --------------------------------------------------------------------------------------

    async def _inspect(self, repo: Repo, *, full: bool) -> Examination:
        examined = await self._examiner.inspect(repo, full=full)
        if examined.found.damage is not None:
            await self._found(repo, examined.found, examined.columns())
        else:
            await self._learn(repo.id, **examined.columns())
        return examined

    async def _found(self, repo: Repo, found: Inspection, columns: dict[str, Any]) -> None:
        log.error("%s: the mirror is damaged: %s", repo.name, escape(str(found.damage)))
        watched = self._watched(repo)
        watched.found, watched.suspicion, watched.unfounded = (self._steady(), found), None, 0
        await self._learn(repo.id, **columns)
        self._wake_work.set()

    async def _heal(self, repo: Repo, found: Inspection) -> Healing:
        watched = self._watched(repo)
        watched.found = None
        watched.heals.append(self._clock())
        watched.heal_from = self._steady() + pause_after_heals(watched.heals, self._clock())
        healing, loses_more = await self._examiner.heal(repo, found)
        columns = healed_columns(healing, self._clock())
        if healing.whole:
            # The content of all objects is read once more, and `status` shows the time of that inspection.
            watched.check_again = True
            log.warning("%s: the mirror is healed", repo.name)
        else:
            log.error("%s: the mirror is still damaged: %s", repo.name, escape(columns["damage"]))
        await self._learn(repo.id, **columns)
        evidence = str(healing.evidence) if healing.evidence else None
        self._publish(
            MirrorHealed(
                repo=repo, whole=healing.whole, done=healing.done, lost=healing.lost, evidence=evidence,
                damage=columns["damage"], loses_more=loses_more,
            )
        )  # fmt: skip
        return healing

    async def _alone(self, repo: Repo, work: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """Runs `work`, one at a time for all mirrors. Raises GitmirrorError if the repository is removed meanwhile."""
        async with self._one_at_a_time:
            task = asyncio.create_task(work(), name=f"watch over {repo.name}")
            self._current = (repo.id, task)
            try:
                await asyncio.wait([task])
            finally:
                self._current = None
                if not task.done():
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)
        if task.cancelled():
            raise GitmirrorError(f"{repo.name} was disabled or removed meanwhile")
        return task.result()

    # -- which mirrors are watched ------------------------------------------------------------------------------------

    def _is_watched(self, repo: Repo) -> bool:
        """Whether the mirror was complete before: an unfinished first clone or restore cannot lack anything yet."""
        return repo.enabled and self._health(repo.id).cloned

    def _all(self) -> list[_Watched]:
        return [self._watched(repo) for repo in self._repos() if self._is_watched(repo)]

    def _watched(self, repo: Repo) -> _Watched:
        known = self._known.get(repo.id)
        if known is None:
            # Looks are spread after a start: each costs little, but there may be a thousand mirrors.
            spread = FIRST_LOOKS * (len(self._known) % 100) / 100
            known = self._known[repo.id] = _Watched(repo, self._steady() + spread)
        known.repo = repo
        return known
