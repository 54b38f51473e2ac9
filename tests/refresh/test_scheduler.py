"""The loop that runs refreshes, over a refresher that hangs and fails on demand: who waits for whom."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, cast

import pytest

from appliance.core.errors import GitmirrorError
from appliance.core.events.facts import Event, RefreshEnded, RefsMoved
from appliance.core.models import HeadChange, Health, RefChange, RefreshOutcome, Repo
from appliance.core.refresh import schedule, scheduler
from appliance.core.refresh.refresher import Refresher
from appliance.core.refresh.runs import MirrorFacts, RefreshRun
from appliance.core.refresh.scheduler import Cancelled, Scheduler, Settings
from appliance.core.store.write_behind import WriteBehind

CLONED = Health(cloned=True, head="refs/heads/main")
OFTEN = Settings(interval=0.02, concurrency=2)
SELDOM = Settings(interval=3600, concurrency=2)


class Refreshes:
    """Stands where a Refresher does: a name in `hung` waits until it is taken out, one in `broken` raises."""

    def __init__(self) -> None:
        self.hung: set[str] = set()
        self.broken: dict[str, Exception] = {}
        self.moved: tuple[RefChange, ...] = ()
        self.head = "refs/heads/main"
        self.begun: Counter[str] = Counter()
        self.running: set[str] = set()
        self.most = 0

    async def refresh(self, run: RefreshRun) -> MirrorFacts:
        name = run.repo.name
        assert name not in self.running, "two refreshes of one mirror at once"
        self.begun[name] += 1
        self.running.add(name)
        self.most = max(self.most, len(self.running))
        try:
            await asyncio.sleep(0)
            while name in self.hung:
                await asyncio.sleep(0.005)
            if name in self.broken:
                raise self.broken[name]
            return MirrorFacts("a" * 40, self.head, refs=1, size=100, moved=self.moved)
        finally:
            self.running.discard(name)


class Loop:
    """A running Scheduler and what it told."""

    def __init__(self) -> None:
        self.refreshes = Refreshes()
        self.outcomes: list[RefreshOutcome] = []
        self.columns: dict[int, dict[str, Any]] = {}
        self.events: list[RefsMoved] = []
        self.passes = 0
        history: WriteBehind[RefreshEnded] = WriteBehind("refreshes", lambda batch: None, 0)
        self.scheduler = Scheduler(
            cast(Refresher, self.refreshes), SELDOM, history, self._published, on_pass=self._passed
        )

    def follow(self, settings: Settings, health: Health = CLONED, *names: str, **changes: Any) -> list[Repo]:
        """Follow `names` in addition to nothing; returns them as repositories."""
        repos = [replace(repo(number, name), **changes) for number, name in enumerate(names, 1)]
        self.scheduler.follow(repos, {each.id: health for each in repos}, settings)
        return repos

    async def until(self, condition: Callable[[], object], message: str = "") -> None:
        """Wait for something that must come to pass; the deadline, a minute, is for hangs."""
        end = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < end, message or "it does not come to pass"
            await asyncio.sleep(0.005)

    def _published(self, event: Event) -> None:
        if isinstance(event, RefreshEnded):
            self.outcomes.append(event.outcome)
            self.columns[event.repo.id] = dict(event.learnt)
            assert {name: getattr(event.health, name) for name in event.learnt} == event.learnt
        elif isinstance(event, RefsMoved):
            self.events.append(event)

    def _passed(self) -> None:
        self.passes += 1


def repo(number: int, name: str) -> Repo:
    """Return a repository as the registry would."""
    return Repo(number, name, f"https://example.com/{name}", None, "cli", None, True, 0.0)


def play(script: Callable[[Loop], Awaitable[None]]) -> Loop:
    """Run `script` beside the loop, and end the loop."""

    async def main() -> Loop:
        loop = Loop()
        task = asyncio.create_task(loop.scheduler.run())
        try:
            await script(loop)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert not loop.refreshes.running
        return loop

    return asyncio.run(main())


@pytest.fixture
def quick_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hung refresh gives its slot back after 50 ms."""
    monkeypatch.setattr(schedule, "ASKING_HOLDS", 0.05)
    monkeypatch.setattr(scheduler, "TICK", 0.02)


def test_what_hangs_in_one_lane_does_not_stop_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """With every place for first clones and for troubled upstreams taken, the healthy are refreshed at once."""
    # None gives its place back meanwhile.
    monkeypatch.setattr(schedule, "ASKING_HOLDS", 60.0)

    async def script(loop: Loop) -> None:
        clones = [repo(number, f"new/{number}") for number in range(10, 14)]
        troubled = [repo(number, f"bad/{number}") for number in range(20, 24)]
        loop.refreshes.hung = {each.name for each in [*clones, *troubled]}
        healths = {each.id: Health() for each in clones} | {each.id: Health(failures=1) for each in troubled}
        healthy = repo(1, "good/one")
        loop.scheduler.follow([*clones, *troubled, healthy], healths | {1: CLONED}, OFTEN)
        await loop.until(lambda: loop.refreshes.begun["good/one"] > 5)
        assert {name.partition("/")[0] for name in loop.refreshes.running} >= {"new", "bad"}

    assert play(script).refreshes.most <= 2 * 3


@pytest.mark.slow
@pytest.mark.usefixtures("quick_places")
def test_healthy_upstreams_that_hang_give_their_places_back() -> None:
    """More upstreams than places go quiet at once: the last healthy one is refreshed all the same."""

    async def script(loop: Loop) -> None:
        names = [f"hung/{number}" for number in range(8)]
        loop.refreshes.hung = set(names)
        loop.follow(OFTEN, CLONED, *names, "good/one")
        await loop.until(lambda: loop.refreshes.begun["good/one"] > 5)
        assert loop.refreshes.running >= set(names)

    play(script)


def test_no_more_than_the_configured_number_run_at_once() -> None:
    """`concurrency` holds for what does not hang."""

    async def script(loop: Loop) -> None:
        names = [f"acme/{number}" for number in range(12)]
        loop.follow(OFTEN, CLONED, *names)
        await loop.until(lambda: min(loop.refreshes.begun[name] for name in names) > 2)

    assert play(script).refreshes.most == 2


@pytest.mark.slow
@pytest.mark.usefixtures("quick_places")
def test_processes_are_bounded_when_everything_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past a number of hung refreshes nothing more is started; when they come back, everything is."""
    monkeypatch.setattr(scheduler, "MOST_RUNNING", 6)

    async def script(loop: Loop) -> None:
        names = [f"hung/{number}" for number in range(30)]
        loop.refreshes.hung = set(names)
        loop.follow(OFTEN, CLONED, *names)
        await loop.until(lambda: len(loop.refreshes.running) >= 6)
        passes = loop.passes
        loop.scheduler.note(1)
        await loop.until(lambda: loop.passes > passes + 1)
        assert len(loop.refreshes.running) <= 6 + OFTEN.concurrency
        loop.refreshes.hung.clear()
        await loop.until(lambda: len(loop.refreshes.begun) == 30)

    play(script)


@pytest.mark.slow
def test_the_loop_goes_on_while_everything_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pass notifies the watchdog."""
    monkeypatch.setattr(scheduler, "TICK", 0.01)

    async def script(loop: Loop) -> None:
        loop.refreshes.hung = {"a/1", "a/2", "a/3"}
        loop.follow(OFTEN, CLONED, "a/1", "a/2", "a/3")
        await loop.until(lambda: loop.passes > 20)

    play(script)


def test_a_failure_is_told_counted_and_cleared() -> None:
    """Failures in a row are counted, the first success forgets them."""

    async def script(loop: Loop) -> None:
        loop.refreshes.broken["a/b"] = GitmirrorError("the upstream says no")
        loop.follow(Settings(interval=0.01, concurrency=2), CLONED, "a/b")
        # It is stored a moment after it is known.
        await loop.until(lambda: loop.columns.get(1, {}).get("failures", 0) >= 3)
        health = loop.scheduler.health(1)
        assert health.last_error == "the upstream says no" and health.verified_at is None and health.cloned
        assert loop.columns[1]["failures"] >= 3 and "verified_at" not in loop.columns[1]
        loop.refreshes.broken.clear()
        await loop.until(lambda: loop.scheduler.health(1).verified_at)
        health = loop.scheduler.health(1)
        assert (health.failures, health.last_error) == (0, None)

    play(script)


def test_an_error_nobody_thought_of_is_that_repositorys_alone() -> None:
    """It is told in words, and the others go on."""

    async def script(loop: Loop) -> None:
        loop.refreshes.broken["a/1"] = ZeroDivisionError("oh")
        loop.follow(OFTEN, CLONED, "a/1", "a/2")
        await loop.until(lambda: loop.refreshes.begun["a/2"] > 3 and loop.refreshes.begun["a/1"] > 1)
        assert loop.scheduler.health(1).last_error == "unexpected ZeroDivisionError: oh"

    play(script)


def test_what_moved_is_an_event_and_nothing_else_is() -> None:
    """`on_moved` is called only when refs moved."""

    async def script(loop: Loop) -> None:
        loop.follow(OFTEN, CLONED, "a/b")
        await loop.until(lambda: len(loop.outcomes) > 2)
        assert loop.events == []
        loop.refreshes.moved = (RefChange("refs/heads/main", None, "a" * 40),)
        await loop.until(lambda: loop.events)
        assert loop.events[0].repo.name == "a/b" and loop.events[0].changes == loop.refreshes.moved

    play(script)


def test_a_changed_default_branch_is_an_event_too() -> None:
    """HEAD is part of what guests are shown, and it can change when no ref moved."""

    async def script(loop: Loop) -> None:
        loop.follow(OFTEN, CLONED, "a/b")
        await loop.until(lambda: len(loop.outcomes) > 2)
        loop.refreshes.head = "refs/heads/trunk"
        await loop.until(lambda: loop.events)
        seen = len(loop.outcomes)
        await loop.until(lambda: len(loop.outcomes) > seen + 2)
        assert [event.changes for event in loop.events] == [()]
        assert loop.events[0].head == HeadChange("refs/heads/main", "refs/heads/trunk")
        loop.refreshes.moved = (RefChange("refs/heads/trunk", None, "a" * 40),)
        await loop.until(lambda: len(loop.events) > 1)
        assert loop.events[1].head is None and loop.events[1].followed == "refs/heads/trunk"

    play(script)


def test_a_refresh_that_runs_already_is_too_early_to_count() -> None:
    """A caller gets a refresh that began after its request."""

    async def script(loop: Loop) -> None:
        loop.refreshes.hung = {"a/b"}
        [asked] = loop.follow(SELDOM, CLONED, "a/b")
        await loop.until(lambda: loop.refreshes.begun["a/b"] == 1)
        waiting = [asyncio.create_task(loop.scheduler.refresh_now(asked)) for _ in range(5)]
        await asyncio.sleep(0)
        loop.refreshes.hung.clear()
        outcomes = await asyncio.gather(*waiting)
        assert loop.refreshes.begun["a/b"] == 2
        assert len({outcome.started_at for outcome in outcomes}) == 1

    play(script)


def test_a_first_clone_under_way_is_joined() -> None:
    """A clone fetches everything, so a caller that arrives meanwhile gets its outcome and causes no second one."""

    async def script(loop: Loop) -> None:
        loop.refreshes.hung = {"a/b"}
        [asked] = loop.follow(SELDOM, Health(), "a/b")
        await loop.until(lambda: loop.refreshes.running)
        assert loop.scheduler.health(1).cloning
        waiting = asyncio.create_task(loop.scheduler.refresh_now(asked))
        await asyncio.sleep(0)
        loop.refreshes.hung.clear()
        assert (await waiting).error is None
        assert loop.refreshes.begun["a/b"] == 1
        assert loop.scheduler.health(1).cloned

    play(script)


def test_out_of_turn_goes_first_and_ignores_the_schedule() -> None:
    """A mirror that is not due for an hour is refreshed when asked for."""

    async def script(loop: Loop) -> None:
        [asked] = loop.follow(SELDOM, replace(CLONED, next_due=time.time() + 3600), "a/b")
        assert (await loop.scheduler.refresh_now(asked)).result == "unchanged"
        assert loop.refreshes.begun["a/b"] == 1

    play(script)


@pytest.mark.slow
def test_a_changed_interval_holds_for_what_is_scheduled_already() -> None:
    """From an hour to a moment: by the setting of all, by that of one, and across a restart."""

    async def script(loop: Loop) -> None:
        await_due = replace(CLONED, next_due=time.time() + 3600)
        repos = loop.follow(SELDOM, await_due, "a/1", "a/2")
        await loop.until(lambda: loop.passes > 1)
        assert not loop.refreshes.begun
        loop.scheduler.follow([replace(repos[0], interval=0.02), repos[1]], {}, SELDOM)
        await loop.until(lambda: loop.refreshes.begun["a/1"] > 2)
        assert not loop.refreshes.begun["a/2"]
        loop.scheduler.follow(repos, {}, OFTEN)
        await loop.until(lambda: loop.refreshes.begun["a/2"] > 2)

    async def restarted(loop: Loop) -> None:
        loop.follow(OFTEN, replace(CLONED, next_due=time.time() + 3600), "a/b")
        await loop.until(lambda: loop.refreshes.begun["a/b"] > 2)

    play(script)
    play(restarted)


def test_a_changed_upstream_is_asked_at_once() -> None:
    """The mirror of the old one is not kept for an interval more."""

    async def script(loop: Loop) -> None:
        [old] = loop.follow(SELDOM, replace(CLONED, next_due=time.time() + 3600), "a/b")
        loop.scheduler.follow([replace(old, url="https://example.com/moved/b")], {}, SELDOM)
        await loop.until(lambda: loop.refreshes.begun["a/b"] == 1)

    play(script)


@pytest.mark.slow
def test_a_schedule_survives_a_restart() -> None:
    """A mirror that was refreshed just now is not refreshed again because serve was started again."""

    async def script(loop: Loop) -> None:
        loop.follow(SELDOM, replace(CLONED, next_due=time.time() + 1800), "a/1")
        await loop.until(lambda: loop.passes > 1)
        assert not loop.refreshes.begun

    play(script)


@pytest.mark.parametrize("how", ["removed", "disabled"])
def test_who_waits_for_a_repository_that_goes_is_told(how: str) -> None:
    """The refresh under way is stopped, and those who asked for it or for another get an error."""

    async def script(loop: Loop) -> None:
        loop.refreshes.hung = {"a/b"}
        [asked] = loop.follow(SELDOM, CLONED, "a/b")
        running = asyncio.create_task(loop.scheduler.refresh_now(asked))
        await loop.until(lambda: loop.refreshes.running)
        next_one = asyncio.create_task(loop.scheduler.refresh_now(asked))
        await asyncio.sleep(0)
        left = [] if how == "removed" else [replace(asked, enabled=False)]
        loop.scheduler.follow(left, {}, SELDOM)
        for waiting in (running, next_one):
            with pytest.raises(Cancelled):
                await waiting
        await loop.until(lambda: not loop.refreshes.running)
        with pytest.raises(Cancelled, match="not followed"):
            await loop.scheduler.refresh_now(asked)
        assert not loop.outcomes

    play(script)


def test_stopping_ends_what_runs_and_tells_who_waits() -> None:
    """Nothing runs on, nobody waits for ever."""

    async def main() -> None:
        loop = Loop()
        task = asyncio.create_task(loop.scheduler.run())
        loop.refreshes.hung = {"a/b"}
        [asked] = loop.follow(SELDOM, CLONED, "a/b")
        waiting = asyncio.create_task(loop.scheduler.refresh_now(asked))
        await loop.until(lambda: loop.refreshes.running)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert not loop.refreshes.running
        with pytest.raises(Cancelled):
            await waiting

    asyncio.run(main())
