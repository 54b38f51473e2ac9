"""An end that is interrupted between its refs and its rows is no loss, and is finished."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest

from appliance.core.errors import Conflict, GitmirrorError
from appliance.core.git.command import GitError
from appliance.core.git.mirror import Mirror
from appliance.core.integrity.inspection import Inspection, look
from appliance.core.integrity.recorded_refs import recorded_refs
from appliance.core.recording.turns import TurnRecorder
from appliance.core.store.audit import Attempt
from appliance.core.units import rfc3339
from tests.conftest import WIDGETS
from tests.recording.conftest import (
    AGENTS,
    ARCHIVE,
    TURNS,
)
from tests.recording.retained import DAY, MONTH, Bench, names, retained
from tests.store.test_fleet_turns import arrived, away_row
from tests.support.gitutil import git, refs

bench = pytest.fixture(retained)
"""A node that was shut down, with the sessions `old`, `kept` and `young`."""


def interrupt_the_end(bench: Bench) -> None:
    """Ends the session `old` until its refs are deleted, as a kill may."""
    with bench.stores.database.writing() as connection:
        connection.execute(
            "CREATE TRIGGER killed BEFORE DELETE ON sessions BEGIN SELECT RAISE(ABORT, 'killed'); END",
        )
    with pytest.raises(GitmirrorError, match="killed"):
        bench.look(MONTH - DAY)
    with bench.stores.database.writing() as connection:
        connection.execute("DROP TRIGGER killed")
    assert "old" not in names(bench, AGENTS) | names(bench, ARCHIVE) and len(names(bench, TURNS)) == 2
    assert {row["session"] for row in bench.stores.sessions.all()} == {"old", "kept", "young"}


def test_an_end_that_was_interrupted_is_no_loss_and_is_finished(bench: Bench) -> None:
    """Its refs are gone, its rows are not: the mirror is whole, and the next round ends it, whatever its age is now."""
    interrupt_the_end(bench)
    recorded = recorded_refs(bench.stores, WIDGETS)
    assert len(recorded) == 4, "two sessions of one turn each"
    assert bench.lab.run(look(bench.lab.mirror(WIDGETS), recorded)) == Inspection()
    with pytest.raises(Conflict, match="is being ended"):
        bench.stores.sessions.keep(WIDGETS, "old", True)
    bench.look(1)
    assert {row["session"] for row in bench.stores.sessions.all()} == {"kept", "young"}
    assert [event["reason"] for event in bench.stores.audit.events() if event["kind"] == "note"] == [
        "ended by retention after 30d"
    ]
    assert bench.stores.begun_ends.of(WIDGETS) == []


def test_what_is_pushed_after_an_end_was_interrupted_is_a_new_session(bench: Bench) -> None:
    """Only what was to be ended ends."""
    interrupt_the_end(bench)
    tip = refs(bench.mirror)[f"{AGENTS}kept"]
    audit, ref = bench.stores.audit, f"{AGENTS}old"
    [number] = audit.record_attempts([Attempt("p", WIDGETS, ref, "old", None, tip, "accepted", None, "c")])
    audit.record_outcomes([(number, "applied", None)])
    for name in (ref, f"{TURNS}{number}"):
        git("update-ref", name, tip, cwd=bench.mirror)
    assert recorded_refs(bench.stores, WIDGETS).items() >= {ref: tip, f"{TURNS}{number}": tip}.items()
    bench.lab.run(TurnRecorder(bench.stores.sessions, bench.lab.mirror).catch_up())
    bench.look(1)
    [row] = bench.stores.sessions.matching(WIDGETS, "old")
    assert (row["turns"], row["tip"]) == (1, tip)
    assert tip in (refs(bench.mirror).get(ref), refs(bench.mirror).get(f"{ARCHIVE}old"))
    assert bench.stores.begun_ends.of(WIDGETS) == []


def test_what_another_node_took_after_an_end_was_interrupted_is_a_new_session(bench: Bench) -> None:
    """It is told as recorded there, so the end that this node finishes must not reach it."""
    tip = refs(bench.mirror)[f"{AGENTS}old"]
    interrupt_the_end(bench)
    # As if the kill had come before the refs were deleted.
    git("update-ref", f"{AGENTS}old", tip, cwd=bench.mirror)
    turns = bench.stores.fleet_turns
    turns.join("a")
    turns.begin("first", 0)
    turns.apply([arrived(1, away_row(7, "old", at=rfc3339(bench.now)))])
    assert bench.stores.sessions.matching(WIDGETS, "old")[0]["turns"] == 4
    lock = bench.mirror / "refs" / "agents" / "old.lock"
    lock.touch()
    with pytest.raises(GitError, match="lock"):
        bench.look(1)
    assert bench.stores.begun_ends.of(WIDGETS), "what cannot be finished now is not forgotten"
    lock.unlink()
    bench.look(1)
    [row] = bench.stores.sessions.matching(WIDGETS, "old")
    assert (row["turns"], row["tip"]) == (1, f"{7:040x}")
    assert "old" not in names(bench, AGENTS) | names(bench, ARCHIVE)
    assert bench.stores.begun_ends.of(WIDGETS) == []


def test_an_end_that_a_push_prevents_has_not_begun(bench: Bench) -> None:
    """git deletes no ref while another process holds one of them; the session goes on, and its refs count."""
    lock = bench.mirror / "refs" / "agents" / "old.lock"
    lock.touch()
    recorded = recorded_refs(bench.stores, WIDGETS)
    with pytest.raises(GitError, match="lock"):
        bench.look(MONTH - DAY)
    assert bench.stores.begun_ends.of(WIDGETS) == []
    assert recorded_refs(bench.stores, WIDGETS) == recorded


def test_an_end_that_runs_was_not_interrupted(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A round of retention that comes while an operator ends a session waits, and does not end it a second time."""
    [row] = bench.stores.sessions.matching(WIDGETS, "old")
    update_refs = Mirror.update_refs

    async def both() -> None:
        reached, going_on = asyncio.Event(), asyncio.Event()

        async def held(mirror: Mirror, lines: Iterable[str]) -> None:
            reached.set()
            await going_on.wait()
            await update_refs(mirror, lines)

        monkeypatch.setattr(Mirror, "update_refs", held)
        ending = asyncio.create_task(bench.room.end(bench.repo, [row], "ended by an operator"))
        await reached.wait()
        looking = asyncio.create_task(bench.room.look_after(bench.repo))
        done, _ = await asyncio.wait({looking}, timeout=0.3)
        assert not done and bench.stores.begun_ends.of(WIDGETS)
        going_on.set()
        await asyncio.gather(ending, looking)

    bench.lab.run(both())
    notes = [event["reason"] for event in bench.stores.audit.events() if event["kind"] == "note"]
    assert notes == ["ended by an operator"] and bench.stores.begun_ends.of(WIDGETS) == []


def test_leftovers_that_git_cannot_remove_now_wait_for_the_next_round(bench: Bench) -> None:
    """A push that fails removes its own turn refs, perhaps while retention does."""
    turn = bench.stores.sessions.turns(WIDGETS, "young")[0]
    bench.stores.sessions.end(WIDGETS, {"young": turn.id}, "ended by a test", bench.now)
    lock = bench.mirror / f"{TURNS}{turn.id}.lock"
    lock.touch()
    bench.look(0)
    assert str(turn.id) in names(bench, TURNS)
    lock.unlink()
    bench.look(0)
    assert str(turn.id) not in names(bench, TURNS)
