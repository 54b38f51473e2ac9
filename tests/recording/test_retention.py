"""The end of sessions: by their age, by an operator; and the archive, out of the way of pushes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.core.errors import GitmirrorError
from appliance.core.git.command import GitError
from appliance.core.models import RefreshOutcome
from appliance.core.recording.retention import IDLE
from appliance.core.recording.trusted_time import HOLDS, TrustedTime
from appliance.core.recording.turns import TurnRecorder
from appliance.core.store.audit import Attempt
from appliance.core.store.sessions import Unbooked
from appliance.core.units import rfc3339
from tests.conftest import WIDGETS
from tests.recording.conftest import (
    AGENTS,
    ARCHIVE,
    TURNS,
    Book,
    fetches,
    new_session,
    record_turn,
    session_of,
    turns_of,
)
from tests.recording.retained import DAY, MONTH, Bench, names, retained
from tests.serving.conftest import Node, entry_of
from tests.support.gitutil import git, refs, wait_until
from tests.support.pkt import PushConnection

bench = pytest.fixture(retained)
"""A node that was shut down, with the sessions `old`, `kept` and `young`."""


class Servers:
    """What the servers of a fleet say of time; None is nothing."""

    def __init__(self, time: float | None, stored: float | None = None) -> None:
        self.time = time
        self.stored = stored

    def now(self) -> float | None:
        """Their clock."""
        return self.time

    async def stored_at(self, place: int) -> float | None:
        """When they stored every turn."""
        if self.stored is None:
            raise GitmirrorError("the fleet is away")
        return self.stored


def test_idle_sessions_go_to_the_archive_and_stay_sessions(bench: Bench) -> None:
    """A day without a turn: the ref moves where no push sees it; book and turns are as they were."""
    turns = names(bench, TURNS)
    bench.look(0)
    assert names(bench, AGENTS) == {"young"} and names(bench, ARCHIVE) == {"old", "kept"}
    logs = (bench.mirror / "logs").rglob("*")
    assert [path.name for path in logs if path.is_file()] == ["young"], "a ref's log goes with the ref, a turn has none"
    assert names(bench, TURNS) == turns and len(turns) == 5
    rows = {row["session"]: row for row in bench.stores.sessions.all(WIDGETS)}
    assert {name: row["archived"] for name, row in rows.items()} == {"old": True, "kept": True, "young": False}
    assert rows["old"]["turns"] == 3 and bench.told == 1
    bench.look(IDLE + 1)
    assert names(bench, AGENTS) == set() and bench.told == 2
    bench.look(1)
    assert bench.told == 2, "nothing moved, so no answer has to be thrown away"


def test_sessions_end_by_their_last_turn_and_the_kept_one_does_not(bench: Bench) -> None:
    """Ref, archive and turns go, the rows of the log stay with a note, the chain holds, the bytes are free again."""
    entries = bench.stores.audit.entries()
    bench.look(0)
    bench.look(MONTH - DAY)
    assert names(bench, ARCHIVE) == {"kept", "young"} and len(names(bench, TURNS)) == 2
    assert {row["session"] for row in bench.stores.sessions.all()} == {"kept", "young"}
    bench.look(2 * DAY)
    assert names(bench, ARCHIVE) == {"kept"} and len(names(bench, TURNS)) == 1
    assert bench.stores.audit.entries() == entries
    notes = [event for event in bench.stores.audit.events() if event["kind"] == "note"]
    assert [(note["session"], note["reason"]) for note in notes] == [
        ("old", "ended by retention after 30d"),
        ("young", "ended by retention after 30d"),
    ]
    assert bench.stores.audit.verify().broken is None
    assert bench.quota.used_bytes == bench.stores.sessions.recorded_bytes() > 0
    assert bench.stores.sessions.unbooked() == [], "an ended turn would be booked again"


def test_a_session_that_is_written_meanwhile_does_not_end(bench: Bench) -> None:
    """The ref is not where the session table has it, because a push is running, so nothing is removed."""
    before = refs(bench.mirror)
    other = next(oid for ref, oid in before.items() if ref.startswith(TURNS) and oid != before[f"{AGENTS}old"])
    git("update-ref", f"{AGENTS}old", other, cwd=bench.mirror)
    [row] = bench.stores.sessions.matching(WIDGETS, "old")
    with pytest.raises(GitError, match="a push is writing the session old"):
        bench.lab.run(bench.room.end(bench.repo, [row], "ended by an operator"))
    assert names(bench, TURNS) == {ref.removeprefix(TURNS) for ref in before if ref.startswith(TURNS)}
    bench.look(MONTH)
    assert len(bench.stores.sessions.turns(WIDGETS, "old")) == 3
    assert {row["session"] for row in bench.stores.sessions.all()} == {"old", "kept"}, "the others end all the same"


def test_a_session_that_is_kept_at_the_last_moment_does_not_end(bench: Bench) -> None:
    """Retention has chosen it, and waits for a repack of the mirror."""

    async def keep() -> None:
        async with bench.locks.exclusive(WIDGETS):
            bench.now += MONTH
            bench.running += MONTH
            looking = asyncio.create_task(bench.room.look_after(bench.repo))
            while not bench.room._ending.locked():
                await asyncio.sleep(0.01)
            bench.stores.sessions.keep(WIDGETS, "old", True)
        await looking

    before = refs(bench.mirror)[f"{AGENTS}old"]
    bench.lab.run(keep())
    assert {row["session"] for row in bench.stores.sessions.all()} == {"old", "kept"}
    assert refs(bench.mirror)[f"{AGENTS}old"] == before and bench.stores.begun_ends.of(WIDGETS) == []


def test_a_push_that_began_before_an_end_and_was_applied_after_it_is_a_session_that_ends(bench: Bench) -> None:
    """Its attempt is older than the last one that ended."""
    audit, sessions, ref = bench.stores.audit, bench.stores.sessions, f"{AGENTS}late"
    tip = refs(bench.mirror)[f"{AGENTS}young"]
    slow, fast = audit.record_attempts(
        [Attempt(p, WIDGETS, ref, "late", None, tip, "accepted", None, "c") for p in "pq"]
    )
    recorder = TurnRecorder(sessions, bench.lab.mirror)

    def apply(number: int) -> None:
        audit.record_outcomes([(number, "applied", None)])
        for name in (ref, f"{TURNS}{number}"):
            git("update-ref", name, tip, cwd=bench.mirror)
        bench.lab.run(recorder.book(Unbooked(number, WIDGETS, "late", ref, tip, rfc3339(bench.now), "c"), 100))

    apply(fast)
    [row] = sessions.matching(WIDGETS, "late")
    bench.lab.run(bench.room.end(bench.repo, [row], "ended by an operator"))
    apply(slow)
    bench.look(2 * MONTH)
    bench.look(1)
    assert [row["session"] for row in sessions.all()] == ["kept"]
    notes = [event for event in audit.events() if event["kind"] == "note" and event["session"] == "late"]
    assert len(notes) == 2 and str(slow) not in names(bench, TURNS)


def test_what_a_kill_left_half_ended_is_ended_by_the_next_look(bench: Bench) -> None:
    """The refs were gone and the rows not yet; or a turn's ref is left of a session that ended."""
    mirror = bench.mirror
    first = bench.stores.sessions.turns(WIDGETS, "old")[0]
    number, left = first.id, first.commit
    git("update-ref", "-d", f"{AGENTS}old", cwd=mirror)
    bench.look(MONTH - DAY)
    assert {row["session"] for row in bench.stores.sessions.all()} == {"kept", "young"}
    git("update-ref", f"{TURNS}{number}", left, cwd=mirror)
    git("update-ref", f"{TURNS}123456", left, cwd=mirror)
    bench.look(1)
    assert str(number) not in names(bench, TURNS)
    assert "123456" in names(bench, TURNS), "what no log knows is nobody's to remove"


@pytest.mark.slow
def test_an_archived_session_is_hidden_from_pushes_and_comes_back_when_written(
    make_node: Callable[..., Node], tmp_path: Path
) -> None:
    """receive-pack does not show it; `git fetch` of its ref finds it; a push brings it back with its turns."""
    node, name = make_node(), new_session()
    guest = node.guest(tmp_path / "guest")
    first = record_turn(guest, name, "first")
    with Book(node.serve) as book:
        book.shift(name, 2 * DAY)
    node.serve.keep_ports()
    node.serve.restart()
    wait_until(lambda: (session_of(node, name) or {})["archived"], message="it is archived")
    assert refs(node.mirror).get(f"{ARCHIVE}{name}") == first
    with PushConnection(*node.serve.git_address, f"/{WIDGETS}") as connection:
        assert not [ref for ref in connection.answer.refs if name in ref or "archive" in ref]
        assert first not in connection.answer.haves
    other = node.guest(tmp_path / "other")
    git("fetch", "--quiet", "--depth=1", "origin", f"{AGENTS}{name}", cwd=other)
    assert git("rev-parse", "FETCH_HEAD", cwd=other) == first
    assert [turn.commit for turn in turns_of(node, name)] == [first]
    second = record_turn(guest, name, "second")
    assert refs(node.mirror).get(f"{AGENTS}{name}") == second
    assert f"{ARCHIVE}{name}" not in refs(node.mirror)
    row = session_of(node, name)
    assert row is not None and (row["turns"], row["archived"]) == (2, False)
    assert entry_of(node.serve, f"{AGENTS}{name}")["outcome"] == "applied"
    for number, commit in enumerate((first, second)):
        assert fetches(node, commit, tmp_path / f"fetch-{number}")


@pytest.mark.slow
def test_keep_exempts_and_off_does_not_and_purge_ends_all(make_node: Callable[..., Node], tmp_path: Path) -> None:
    """`session keep` holds over a start with a retention of no time; a purged repository has no sessions left."""
    node = make_node()
    guest = node.guest(tmp_path / "guest")
    for name in ("one", "two"):
        record_turn(guest, name, name)
    node.serve.cli("session", "keep", WIDGETS, "one")
    node.serve.configure([node.upstream.url(WIDGETS)], recording={"retention": "1ms"}, refresh={"interval": "1h"})
    node.serve.restart()
    wait_until(lambda: session_of(node, "two") is None, message="the other has ended")
    assert session_of(node, "one") is not None
    node.serve.cli("session", "keep", WIDGETS, "one", "--off")
    node.serve.restart()
    wait_until(lambda: session_of(node, "one") is None, message="it has ended too")
    assert not [ref for ref in refs(node.mirror) if "agents" in ref or "turns" in ref]
    assert node.serve.cli("audit", "verify").returncode == 0


def test_a_clock_that_jumps_ends_no_session_until_it_holds(bench: Bench) -> None:
    """A clock that is weeks ahead for a moment ends nothing; a node that really was off continues after hours."""
    turns = names(bench, TURNS)
    bench.look(0)
    bench.jump(40 * DAY)
    assert names(bench, TURNS) == turns
    bench.jump(-40 * DAY)
    bench.look(60)
    assert names(bench, TURNS) == turns
    bench.jump(40 * DAY)
    bench.look(HOLDS - 1)
    assert names(bench, TURNS) == turns
    bench.jump(3 * DAY)
    bench.look(HOLDS - 1)
    assert names(bench, TURNS) == turns, "it was set once more, so it has to hold anew"
    bench.look(2)
    assert {row["session"] for row in bench.stores.sessions.all(WIDGETS)} == {"kept"}


def test_a_clock_that_is_ahead_at_start_is_not_believed_at_the_next_one_either(bench: Bench) -> None:
    """What the wrong clock wrote into the database makes it no better."""
    turns = names(bench, TURNS)
    bench.look(0)
    bench.now += 40 * DAY
    for _ in range(2):
        judge = bench.room._time = bench.time()
        bench.look(60)
        assert names(bench, TURNS) == turns
        assert "40d" in (judge.trouble() or "") and "the clock" in (judge.trouble() or "")
        outcome = RefreshOutcome(WIDGETS, bench.now, 0.1)
        bench.stores.health.record_refresh(bench.repo.id, outcome, verified_at=bench.now)


def test_the_first_start_with_this_version_goes_by_what_the_database_knows(bench: Bench) -> None:
    """Nothing was trusted yet: the newest refresh or push is what the clock is compared with."""
    turns = names(bench, TURNS)
    bench.now += 40 * DAY
    bench.look(60)
    assert names(bench, TURNS) == turns


def in_fleet(bench: Bench, servers: Servers, *, node: str) -> None:
    """Makes the bench the node `a` of a fleet, and `old` a session of `node`."""
    bench.room._node, bench.room._fleet = "a", servers
    bench.room._time = TrustedTime(bench.stores.time, lambda: bench.now, lambda: bench.running, servers.now)
    with bench.stores.database.writing() as connection:
        connection.execute("UPDATE turns SET seq = id, node = ?", [node])
        connection.execute("UPDATE sessions SET node = ?", [node])


@pytest.mark.parametrize("days", [40, -40])
def test_a_node_whose_clock_is_not_the_fleets_ends_nothing(bench: Bench, days: int) -> None:
    """Also at its first start, when nothing tells it what time it was before."""
    turns, servers = names(bench, TURNS), Servers(bench.now, bench.now - 300 * DAY)
    with bench.stores.database.writing() as connection:
        for table in ("trusted_time", "refreshes"):
            connection.execute(f"DELETE FROM {table}")
    in_fleet(bench, servers, node="b")
    bench.now += days * DAY
    bench.look(HOLDS + 1)
    assert names(bench, TURNS) == turns
    assert ("ahead of" if days > 0 else "behind") in (bench.room._time.trouble() or "")


@pytest.mark.parametrize(
    ("node", "stored", "ends"),
    [("b", 0.0, False), ("a", 0.0, False), ("b", 31 * DAY, True), ("b", None, False), ("a", None, True)],
)
def test_what_the_servers_stored_just_now_is_not_old(bench: Bench, node: str, stored: float | None, ends: bool) -> None:
    """The clock of the node that took a turn may have been weeks behind. Without the servers, others' wait."""
    servers = Servers(None)
    in_fleet(bench, servers, node=node)
    bench.look(0)
    bench.now += 40 * DAY
    bench.running += 40 * DAY
    servers.time, servers.stored = bench.now, None if stored is None else bench.now - stored
    bench.look(1)
    assert (bench.stores.sessions.get(WIDGETS, "old") is None) == ends
