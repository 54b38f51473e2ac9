"""When mirrors are looked at, inspected and healed: spread over the night, never in a storm, never in a loop."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import wraps
from typing import Any

import pytest

from appliance.core.errors import GitmirrorError
from appliance.core.events.bus import EventBus
from appliance.core.events.facts import DamageSuspected, MirrorHealed, RefsMoved, RegistryChanged, SessionsEnded
from appliance.core.git.failures import speaks_of_damage
from appliance.core.integrity import schedule, watch
from appliance.core.integrity.examination import Examination, Examiner
from appliance.core.integrity.healing import Healing
from appliance.core.integrity.inspection import Inspection
from appliance.core.integrity.watch import IntegrityWatch
from appliance.core.models import Health, Repo

MIDNIGHT = datetime(2026, 11, 26).timestamp()
HOUR, DAY = 3600.0, 86400.0
INSPECTED = MIDNIGHT + 30 * HOUR
"""When the inspections of these tests begin: later than all that is due in them."""
WHOLE, DAMAGED = Inspection((), {}), Inspection(("a blob is lost",), {})


def repo(number: int = 1) -> Repo:
    """A repository that was registered long ago."""
    return Repo(number, f"acme/r{number}", "https://example.com/x", None, "cli", None, True, MIDNIGHT - 30 * DAY)


# The schedule


def test_each_mirror_is_inspected_every_night_and_once_a_week_in_full() -> None:
    """Two weeks of 70 mirrors, looked at every ten minutes."""
    begins: Counter[datetime] = Counter()
    full_nights: Counter[int] = Counter()
    healths = {number: Health(cloned=True, inspected_at=MIDNIGHT - DAY) for number in range(1, 71)}
    counts: Counter[int] = Counter()
    full: Counter[int] = Counter()
    for step in range(14 * 24 * 6):
        now = MIDNIGHT + step * 600
        moment = datetime.fromtimestamp(now)
        for number, health in healths.items():
            if schedule.is_due(repo(number), health, now, MIDNIGHT):
                assert 1 <= moment.hour < 6 or (moment.hour, moment.minute) == (6, 0)
                counts[number] += 1
                begins[moment] += 1
                health = replace(health, inspected_at=now)
                if schedule.is_full(repo(number), health, now):
                    full[number] += 1
                    full_nights[moment.day] += 1
                    health = replace(health, verified_whole_at=now)
                healths[number] = health
    assert set(counts.values()) == {14}
    # The first night is also overdue for mirrors that were never inspected in full.
    assert set(full.values()) <= {2, 3}
    assert max(begins.values()) < 12, "they begin all over the night"
    assert max(list(full_nights.values())[1:]) < 22, "and on all nights of the week"


def test_a_node_that_is_off_at_night_inspects_by_day() -> None:
    """After three days without a night."""
    noon = MIDNIGHT + 12 * HOUR
    seen = Health(cloned=True, inspected_at=noon - 2 * DAY)
    assert not schedule.is_due(repo(), seen, noon, noon)
    assert schedule.is_due(repo(), replace(seen, inspected_at=noon - 4 * DAY), noon, noon)
    # A clock that was set back by a month does not keep it waiting for that month.
    night = MIDNIGHT + 5.99 * HOUR
    assert schedule.is_due(repo(), replace(seen, inspected_at=night + 30 * DAY), night, night)
    # A first start is no reason to inspect a thousand old mirrors at noon.
    assert not schedule.is_due(repo(), Health(cloned=True), noon, noon)
    assert schedule.is_due(repo(), Health(cloned=True), noon, noon - 4 * DAY)


def test_heals_and_suspicions_wait_longer_each_time() -> None:
    """At most a handful of heals a day; a mirror that is suspected without end is inspected a twentieth of the time."""
    heals: list[float] = []
    now = MIDNIGHT
    while now < MIDNIGHT + DAY:
        heals.append(now)
        now += schedule.pause_after_heals(heals, now)
    assert len(heals) <= 10
    assert schedule.pause_after_heals([], now) == 0
    assert schedule.pause_after_heals([now - 2 * DAY], now) == 0
    assert schedule.pause_after_suspicions(1, 0.1) == 60
    assert schedule.pause_after_suspicions(9, 0.1) == 3600
    assert schedule.pause_after_suspicions(1, 600) == 12000


@pytest.mark.parametrize(
    ("said", "counts"),
    [
        ("fatal: git upload-pack: aborting due to possible repository corruption on the remote side.", True),
        ("[77] fatal: unterminated line in ./packed-refs: 4a2b75e0b840f7", True),
        ("error: refs/heads/x does not point to a valid object!", True),
        ("warning: ignoring broken ref refs/gitmirror/turns/7", True),
        (f"fatal: unable to read {'a' * 40}", True),
        (f"error: Could not read {'a' * 40}", True),
        ("error: packfile ./objects/pack/pack-1.pack does not match index", True),
        (f"fatal: loose object {'a' * 40} (stored in ./objects/aa) is corrupt", True),
        ("fatal: unable to access './objects': Input/output error", True),
        # An upstream's words, and those about upstreams and guests.
        ("remote: fatal: loose object is corrupt", False),
        ("fatal: could not read Username for 'https://example.com': terminal prompts disabled", False),
        ("fatal: Could not read from remote repository.", False),
        (f"fatal: git upload-pack: not our ref {'a' * 40}", False),
        ("fatal: unable to access 'https://example.com/is corrupt/': Could not resolve host: example.com", False),
        ("fatal: the remote end hung up unexpectedly", False),
        # What the machine lacks.
        ("error: packfile ./objects/pack/pack-1.pack cannot be accessed: Too many open files", False),
        (f"fatal: unable to read {'a' * 40}\nfatal: write error: No space left on device", False),
        ("", False),
    ],
)
def test_words_that_make_a_mirror_suspect(said: str, counts: bool) -> None:
    """As git prints them."""
    assert (speaks_of_damage(said) is not None) is counts


# The watch


@dataclass
class Played(Examiner):
    """Inspections as a test wants them."""

    found: Inspection = WHOLE
    healing: Healing = field(default_factory=lambda: Healing(True, (), {}, None, None))
    error: GitmirrorError | None = None
    hangs: bool = False
    looks: int = 0
    inspections: list[bool] = field(default_factory=list)
    heals: int = 0

    async def look(self, repo: Repo) -> Inspection:
        self.looks += 1
        return self.found

    async def inspect(self, repo: Repo, *, full: bool) -> Examination:
        self.inspections.append(full)
        if self.hangs:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error
        return Examination(repo, full, INSPECTED, 0.1, self.found)

    async def heal(self, repo: Repo, found: Inspection) -> tuple[Healing, bool]:
        self.heals += 1
        if self.healing.whole:
            self.found = WHOLE
        return self.healing, bool(self.healing.lost)


@dataclass
class Passed:
    """The seconds that a test let pass."""

    seconds: float = 0.0


@dataclass
class Stage:
    """A watch over one mirror, with clocks that a test sets and the health that it learnt."""

    examiner: Played
    bus: EventBus
    watch: IntegrityWatch
    health: dict[int, Health]
    healed: list[MirrorHealed]
    repos: list[Repo]
    time: Passed

    async def until(self, held: Callable[[], object]) -> None:
        """Waits until something holds."""
        async with asyncio.timeout(20):
            while not held():
                await asyncio.sleep(0.005)

    async def rounds(self) -> None:
        """Lets the loops run a few times."""
        for _ in range(20):
            await asyncio.sleep(0.005)


@asynccontextmanager
async def stage(monkeypatch: pytest.MonkeyPatch, hour: float = 12.0, **health: Any) -> AsyncIterator[Stage]:
    """Runs a watch at that hour of a day, over a mirror that was inspected at midnight."""
    monkeypatch.setattr(watch, "TICK", 0.01)
    bus, healed = EventBus(), list[MirrorHealed]()
    healths = {1: Health(cloned=True, inspected_at=MIDNIGHT - 3 * HOUR, **health)}
    repos = [repo()]
    examiner = Played()

    async def learn(repo_id: int, **columns: Any) -> None:
        healths[repo_id] = replace(healths[repo_id], **columns)

    passed = Passed()
    integrity = IntegrityWatch(
        examiner,
        lambda: repos,
        lambda repo_id: healths.get(repo_id, Health()),
        learn,
        bus.publish,
        lambda: MIDNIGHT + hour * HOUR + passed.seconds,
        lambda: 1000.0 + passed.seconds,
    )
    found = Stage(examiner, bus, integrity, healths, healed, repos, passed)
    bus.subscribe(DamageSuspected, integrity.suspected)
    bus.subscribe(RefsMoved, integrity.moved)
    bus.subscribe(SessionsEnded, integrity.sessions_ended)
    bus.subscribe(RegistryChanged, integrity.follow)
    bus.subscribe(MirrorHealed, healed.append)
    running = asyncio.create_task(integrity.run())
    try:
        yield found
        assert not running.done()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def in_a_loop(test: Callable[[pytest.MonkeyPatch], Coroutine[Any, Any, None]]) -> Callable[[pytest.MonkeyPatch], None]:
    """Runs an asynchronous test."""

    @wraps(test)
    def run(monkeypatch: pytest.MonkeyPatch) -> None:
        asyncio.run(test(monkeypatch))

    return run


def suspect(on: Stage) -> None:
    """git said something."""
    on.bus.publish(DamageSuspected(mirror="acme/r1", words="possible repository corruption"))


@in_a_loop
async def test_a_refresh_that_moved_something_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, and otherwise hourly."""
    async with stage(monkeypatch) as on:
        await on.until(lambda: on.examiner.looks == 1)
        await on.rounds()
        assert on.examiner.looks == 1
        on.bus.publish(RefsMoved(repo=repo(), changes=()))
        await on.until(lambda: on.examiner.looks == 2)
        on.time.seconds += HOUR + 1
        await on.until(lambda: on.examiner.looks == 3)
        assert not on.examiner.inspections


@in_a_loop
async def test_what_a_look_finds_is_shown_and_healed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The damage is in the health before the heal begins, and gone after it."""
    async with stage(monkeypatch) as on:
        shown: list[str | None] = []
        heal = on.examiner.heal

        async def watched(repo: Repo, found: Inspection) -> tuple[Healing, bool]:
            shown.append(on.health[1].damage)
            return await heal(repo, found)

        monkeypatch.setattr(on.examiner, "heal", watched)
        on.examiner.found = DAMAGED
        on.bus.publish(RefsMoved(repo=repo(), changes=()))
        await on.until(lambda: on.healed)
        assert shown == ["a blob is lost"] and on.health[1].damage is None
        await on.until(lambda: on.health[1].verified_whole_at)
        assert on.examiner.inspections == [True], "what the look found is healed, and the content inspected afterwards"
        await on.rounds()
        assert (on.examiner.heals, len(on.examiner.inspections)) == (1, 1)


@in_a_loop
async def test_a_heal_that_does_not_suffice_is_no_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one comes later, each time later, and inspects first."""
    async with stage(monkeypatch) as on:
        on.examiner.found = DAMAGED
        on.examiner.healing = Healing(False, (), {"refs/agents/s": "1" * 40}, None, "refs/agents/s is lost")
        on.bus.publish(RefsMoved(repo=repo(), changes=()))
        await on.until(lambda: on.examiner.heals == 1)
        for _ in range(50):
            suspect(on)
            on.bus.publish(RefsMoved(repo=repo(), changes=()))
        await on.rounds()
        assert (on.examiner.heals, on.health[1].damage) == (1, "refs/agents/s is lost")
        assert on.healed[0].loses_more and not on.healed[0].whole
        on.time.seconds += schedule.HEAL_AGAIN + 1
        await on.until(lambda: on.examiner.heals == 2)
        assert on.examiner.inspections == [True]
        on.time.seconds += schedule.HEAL_AGAIN + 1
        await on.rounds()
        assert on.examiner.heals == 2
        on.time.seconds += 3 * schedule.HEAL_AGAIN
        await on.until(lambda: on.examiner.heals == 3)


@in_a_loop
async def test_a_session_that_ends_clears_what_was_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody misses it any more: the mirror is inspected again, and that is no heal."""
    async with stage(monkeypatch) as on:
        on.examiner.found = DAMAGED
        on.examiner.healing = Healing(False, (), {}, None, "refs/agents/s is lost")
        on.bus.publish(RefsMoved(repo=repo(), changes=()))
        await on.until(lambda: on.examiner.heals == 1)
        on.examiner.found = WHOLE
        on.bus.publish(SessionsEnded(repo=repo()))
        await on.until(lambda: on.health[1].damage is None)
        assert on.examiner.heals == 1


@in_a_loop
async def test_suspicions_are_no_storm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand of them cost one inspection, and the next only after a pause."""
    async with stage(monkeypatch) as on:
        for _ in range(1000):
            suspect(on)
        await on.until(lambda: len(on.examiner.inspections) == 2)
        assert on.examiner.inspections == [False, True], "refs and links first, then the content"
        await on.rounds()
        for _ in range(1000):
            suspect(on)
        await on.rounds()
        assert len(on.examiner.inspections) == 2
        on.time.seconds += schedule.SUSPECT_AGAIN + 1
        await on.until(lambda: len(on.examiner.inspections) == 4)
        await on.rounds()
        on.time.seconds += schedule.SUSPECT_AGAIN + 1
        suspect(on)
        await on.rounds()
        assert len(on.examiner.inspections) == 4
        assert on.health[1].damage is None and not on.healed


@in_a_loop
async def test_an_inspection_that_cannot_be_made_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    """No descriptors, a deadline: the mirror keeps its state, and is not asked again at once."""
    async with stage(monkeypatch) as on:
        on.examiner.error = GitmirrorError("git cannot be started: Too many open files")
        suspect(on)
        await on.until(lambda: on.examiner.inspections)
        await on.rounds()
        assert len(on.examiner.inspections) == 1 and on.health[1].damage is None
        on.time.seconds += watch.TRY_AGAIN + 1
        on.examiner.error, on.examiner.found = None, DAMAGED
        await on.until(lambda: on.healed)


@in_a_loop
async def test_the_night_inspects(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, at six at the latest, and the dates are learnt."""
    async with stage(monkeypatch, hour=25.5) as on:
        on.time.seconds += 4.4 * HOUR
        await on.until(lambda: on.examiner.inspections)
        await on.rounds()
        assert len(on.examiner.inspections) == 1
        assert on.health[1].inspected_at == INSPECTED
        assert (on.health[1].verified_whole_at == INSPECTED) is on.examiner.inspections[0]


@in_a_loop
async def test_a_mirror_that_goes_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A purge needs the mirror's lock, which an inspection of hours would hold."""
    async with stage(monkeypatch) as on:
        on.examiner.hangs = True
        inspecting = asyncio.create_task(on.watch.inspect(repo(), full=True))
        await on.until(lambda: on.examiner.inspections)
        gone = on.repos.pop()
        on.bus.publish(RegistryChanged(gone=(gone,)))
        with pytest.raises(GitmirrorError, match="removed meanwhile"):
            await inspecting


@in_a_loop
async def test_damage_of_before_a_restart_is_inspected_and_healed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is in the database."""
    async with stage(monkeypatch, damage="a blob is lost") as on:
        on.examiner.found = DAMAGED
        await on.until(lambda: on.healed)
        assert on.examiner.inspections[0] and on.health[1].damage is None


@in_a_loop
async def test_a_mirror_that_is_disabled_or_not_cloned_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No look, and no inspection."""
    async with stage(monkeypatch) as on:
        await on.until(lambda: on.examiner.looks == 1)
        on.repos[0] = replace(on.repos[0], enabled=False)
        suspect(on)
        on.time.seconds += 2 * HOUR
        await on.rounds()
        on.repos[0] = replace(on.repos[0], enabled=True)
        on.health[1] = Health()
        suspect(on)
        await on.rounds()
        assert on.examiner.looks == 1 and not on.examiner.inspections


def test_a_night_has_one_date() -> None:
    """An inspection that begins late belongs to the same night, also where clocks are set by an hour."""
    evening = datetime(2026, 11, 26, 23, 0)
    nights = {schedule._night((evening + timedelta(hours=hours)).timestamp()) for hours in range(3, 20)}
    assert len(nights) == 1
