"""Many repositories: who goes first, what a restart does, what a pass and an idle refresh cost."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.core.git.ref_memory import RefMemory
from appliance.core.git.ref_sets import FOLLOWED
from appliance.core.git.ref_traces import take_traces
from appliance.core.health import lag_of
from appliance.core.refresh.queue import RefreshQueue
from appliance.core.refresh.schedule import Lane
from appliance.core.refresh.scheduler import LeftAlone, Settings
from tests.conftest import WIDGETS, ServeFactory
from tests.refresh.node import repo_status
from tests.refresh.test_scheduler import CLONED, OFTEN, SELDOM, Loop, play, repo
from tests.support.generate import add_commit
from tests.support.gitutil import git, refs, wait_until
from tests.support.upstream import HttpUpstream

MINUTE = Settings(interval=60, concurrency=4)


@given(st.lists(st.tuples(st.integers(0, 9), st.floats(0, 100), st.sampled_from(Lane)), max_size=60), st.floats(0, 100))
def test_the_queue_gives_each_once_when_it_is_due(puts: list[tuple[int, float, Lane]], now: float) -> None:
    """The latest entry for an id counts; the earliest `last` goes first; nothing is returned early or twice."""
    queue, wanted = RefreshQueue(), dict[int, tuple[float, Lane]]()
    for repo_id, due, lane in puts:
        queue.put(repo_id, due, lane, due)
        wanted[repo_id] = (due, lane)
    queue.remove(0)
    wanted.pop(0, None)
    for lane in Lane:
        ripe = sorted((when, repo_id) for repo_id, (when, each) in wanted.items() if when <= now and each is lane)
        taken = list(queue.take(lane, now, 3))
        assert [wanted[repo_id][0] for repo_id in taken] == [when for when, _ in ripe[:3]]
        assert not set(queue.take(lane, now, 99)) & set(taken)
    assert queue.next_due == min([when for when, _ in wanted.values() if when > now], default=float("inf"))
    assert not queue.has_ready


def test_a_queue_that_is_asked_all_the_time_does_not_grow() -> None:
    """What was queued anew leaves nothing behind for long."""
    queue = RefreshQueue()
    for number in range(10_000):
        queue.put(number % 3, 1e9, Lane.HEALTHY, 1e9)
    assert len(queue._later) < 200


@pytest.mark.slow
def test_a_restart_refreshes_what_is_due_and_spreads_the_rest() -> None:
    """A thousand on a stored schedule: only those whose time has come, four at a time, the longest overdue first."""

    async def script(loop: Loop) -> None:
        now = time.time()
        repos = [repo(number, f"a/{number}") for number in range(1000)]
        # Eight are overdue, one becomes due in a moment, and the time of the rest does not come in this test.
        dues = [*(now - 8 + number for number in range(8)), now + 0.3, *(now + 600 + number for number in range(991))]
        healths = {number: replace(CLONED, next_due=due) for number, due in enumerate(dues)}
        loop.scheduler.follow(repos, healths, Settings(interval=7200, concurrency=4))
        await loop.until(lambda: "a/8" in loop.refreshes.begun)
        passes = loop.passes
        await loop.until(lambda: loop.passes > passes + 1)
        assert list(loop.refreshes.begun.items()) == [(f"a/{number}", 1) for number in range(9)]

    assert play(script).refreshes.most <= 4


def test_after_an_hour_of_downtime_the_most_urgent_goes_first() -> None:
    """All are overdue: `concurrency` at a time, short intervals before long ones, and what is asked for before all."""

    async def script(loop: Loop) -> None:
        hour_ago = replace(CLONED, next_due=time.time() - 3600)
        slow = [replace(repo(number, f"slow/{number}"), interval=1800.0) for number in range(500)]
        quick = [replace(repo(number, f"quick/{number}"), interval=10.0) for number in range(500, 600)]
        everything = [*slow, *quick]
        loop.scheduler.follow(everything, {each.id: hour_ago for each in everything}, MINUTE)
        assert loop.scheduler.nudge(slow[77])
        await loop.until(lambda: loop.refreshes.begun.total() >= 600)
        order = list(loop.refreshes.begun)
        assert "slow/77" in order[:4]
        assert {name.partition("/")[0] for name in order[4:100]} == {"quick"}

    assert play(script).refreshes.most <= 4


def test_nudges_coalesce() -> None:
    """Any number of webhooks cause one more refresh after a running one, and one if none is running."""

    async def script(loop: Loop) -> None:
        [asked] = loop.follow(SELDOM, replace(CLONED, next_due=time.time() + 3600), "a/b")
        loop.refreshes.hung = {"a/b"}
        for _ in range(500):
            assert loop.scheduler.nudge(asked)
        await loop.until(lambda: loop.refreshes.running)
        for _ in range(500):
            loop.scheduler.nudge(asked)
        assert loop.scheduler.is_asked(1)
        loop.refreshes.hung.clear()
        await loop.until(lambda: loop.refreshes.begun["a/b"] == 2 and not loop.refreshes.running)
        assert not loop.scheduler.is_asked(1)
        assert not loop.scheduler.nudge(repo(9, "not/followed"))

    assert play(script).refreshes.begun["a/b"] == 2


def test_a_stored_wish_for_patience_holds_after_a_restart() -> None:
    """Only an operator can override Retry-After; other callers get an error."""

    async def script(loop: Loop) -> None:
        patient = replace(CLONED, failures=1, retry_at=time.time() + 600, next_due=time.time() - 10)
        [asked] = loop.follow(OFTEN, patient, "a/b")
        loop.scheduler.nudge(asked)
        with pytest.raises(LeftAlone, match="allows no request for another"):
            await loop.scheduler.refresh_now(asked)
        assert not loop.refreshes.begun
        assert (await loop.scheduler.refresh_now(asked, insist=True)).error is None

    play(script)


@pytest.mark.slow
@pytest.mark.parametrize("step", [3600.0, -3600.0])
def test_a_clock_that_is_set_changes_no_lag(monkeypatch: pytest.MonkeyPatch, step: float) -> None:
    """By an hour, either way: lag is a duration; what was verified before this start is left as it was stored."""
    real, offset = time.time, 0.0
    monkeypatch.setattr(time, "time", lambda: real() + offset)

    async def script(loop: Loop) -> None:
        nonlocal offset
        stored = replace(CLONED, verified_at=real() - 100, next_due=real() + 1000)
        repos = [repo(1, "a/here"), repo(2, "a/stored")]
        loop.scheduler.follow(repos, {1: CLONED, 2: stored}, SELDOM)
        await loop.until(lambda: loop.scheduler.health(1).verified_at)
        passes, offset = loop.passes, step
        loop.scheduler.nudge(repos[0])
        loop.refreshes.hung = {"a/here"}
        await loop.until(lambda: loop.passes > passes + 1)
        lag = lag_of(loop.scheduler.health(1), time.time())
        assert lag is not None and lag < 5
        assert loop.scheduler.health(2).verified_at == stored.verified_at
        loop.refreshes.hung.clear()

    play(script)


# What is remembered of refs


CHANGES: list[Callable[[Path, str], object]] = [
    lambda mirror, oid: git("update-ref", "refs/heads/main", oid, cwd=mirror),
    lambda mirror, oid: git("update-ref", "refs/heads/new/branch", oid, cwd=mirror),
    lambda mirror, oid: git("update-ref", "-d", "refs/tags/v1.0.0", cwd=mirror),
    lambda mirror, oid: git("pack-refs", "--all", cwd=mirror),
    lambda mirror, oid: (mirror / "packed-refs").unlink(missing_ok=True),
]


@pytest.mark.parametrize("change", CHANGES, ids=range(len(CHANGES)))
def test_refs_are_remembered_until_anything_touches_them(
    widgets_bare: Path, change: Callable[[Path, str], object]
) -> None:
    """By git or by hand, packed or loose: then they are read again. Agents' refs do not matter."""
    git("pack-refs", "--all", cwd=widgets_bare)
    memory, known = RefMemory(), refs(widgets_bare)
    oid = git("rev-parse", "refs/heads/main~1", cwd=widgets_bare)
    (widgets_bare / "refs/heads/main").write_text(known["refs/heads/main"] + "\n")
    _age(widgets_bare)
    memory.learn(widgets_bare, take_traces(widgets_bare, time.time() + 10, *FOLLOWED), known)
    assert memory.holds(widgets_bare, known)
    assert not memory.holds(widgets_bare, known | {"refs/heads/main": oid})
    assert not memory.holds(widgets_bare, {"refs/heads/main": known["refs/heads/main"]})
    git("update-ref", "refs/agents/s", oid, cwd=widgets_bare)
    assert memory.holds(widgets_bare, known)
    change(widgets_bare, oid)
    assert not memory.holds(widgets_bare, known)


def test_a_change_of_this_moment_is_not_trusted(widgets_bare: Path) -> None:
    """Another one in the same tick of the file system's clock would leave the same trace."""
    memory, known = RefMemory(), refs(widgets_bare)
    (widgets_bare / "refs/heads/main").write_text(known["refs/heads/main"] + "\n")
    memory.learn(widgets_bare, take_traces(widgets_bare, time.time(), *FOLLOWED), known)
    assert not memory.holds(widgets_bare, known)


def _age(repository: Path) -> None:
    """Make all that traces look at old, so that what changes in this very moment has another time."""
    for path in (repository / "HEAD", repository / "packed-refs", *(repository / "refs").rglob("*")):
        os.utime(path, (1_000_000_000, 1_000_000_000))


@pytest.mark.slow
def test_a_mirror_that_was_changed_by_hand_is_put_right(serve_factory: ServeFactory, upstream: HttpUpstream) -> None:
    """Long after its refs were remembered: the next refresh sees it, though nothing moved upstream."""
    serve = serve_factory(repos=[upstream.url(WIDGETS)], refresh={"interval": "1s"}).start()
    tip = serve.wait_for_repo(WIDGETS)["tip"]
    asked = upstream.count(WIDGETS)
    wait_until(lambda: upstream.count(WIDGETS) > asked + 10, timeout=60, message="its refs are remembered")
    git("update-ref", "refs/heads/main", f"{tip}~1", cwd=serve.mirror(WIDGETS))
    serve.wait_for_ref(WIDGETS, "refs/heads/main", tip)
    new = add_commit(upstream.path(WIDGETS), "main", {"x": "1\n"})
    serve.wait_for_ref(WIDGETS, "refs/heads/main", new)
    assert repo_status(serve, WIDGETS)["state"] == "fresh"


@pytest.mark.slow
def test_what_is_not_written_yet_is_written_at_the_end(serve_factory: ServeFactory, upstream: HttpUpstream) -> None:
    """Refreshes that found nothing wait to be written together; a stop loses none of them."""
    serve = serve_factory(repos=[upstream.url(WIDGETS)], refresh={"interval": "1s"}).start()
    serve.wait_for_repo(WIDGETS)
    wait_until(lambda: upstream.count(WIDGETS) > 12, timeout=60, message="it is refreshed")
    serve.terminate()
    rows = serve.cli_json("refreshes", WIDGETS)
    status = serve.cli_json("status", codes=(0, 3, 4))["repos"][0]
    assert rows[0]["started_at"] == status["verified_at"]
    assert {row["result"] for row in rows} == {"moved", "unchanged"}
