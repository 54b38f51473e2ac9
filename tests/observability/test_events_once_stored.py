"""An event goes out once what it reports is stored. A database that hangs or fails silences nothing."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import pytest

from appliance.core.api.client import Watch
from appliance.core.config.settings import RecordingConfig
from appliance.core.events.facts import Event, TurnRecorded
from appliance.core.git.mirror import Mirror
from appliance.core.layout import Layout
from appliance.core.models import ZERO_OID, PushDecision, RefCommand, Repo
from appliance.core.node.state_dir import open_stores
from appliance.core.recording.durability import ThisNodeAlone
from appliance.core.recording.found import FoundTurns
from appliance.core.recording.hook_guard import HookGuard
from appliance.core.recording.push_authorizer import PushAuthorizer
from appliance.core.recording.quota import Quota
from appliance.core.recording.turns import TurnRecorder
from appliance.core.store import write_behind
from appliance.core.store.audit import AuditLog
from appliance.core.store.database import StoreError
from appliance.core.store.faults import BUSY_SECONDS
from appliance.core.store.write_behind import TELL_WITHIN, WriteBehind, once_stored
from tests.conftest import WIDGETS, ServeFactory
from tests.serving.conftest import SETTLED
from tests.support.generate import add_commit
from tests.support.gitutil import git, wait_until
from tests.support.serve import Serve
from tests.support.upstream import HttpUpstream

SOON = BUSY_SECONDS / 2
"""Seconds in which an event must have come: TELL_WITHIN and room for a busy machine, long before SQLite gives up."""


class Listener:
    """The events of a serve, with how long after `at` each came, and what `look` saw then."""

    def __init__(self, serve: Serve, look: Callable[[dict[str, Any]], Any] = lambda event: None) -> None:
        self.watch = Watch(Layout(serve.state))
        self.events: list[tuple[dict[str, Any], float, Any]] = []
        self._look = look
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        for event in self.watch:
            self.events.append((event, time.time() - seconds_of(event["at"]), self._look(event)))

    def wait_for(self, name: str, **facts: Any) -> tuple[dict[str, Any], float, Any]:
        """The first event of that name with these facts."""

        def find() -> tuple[dict[str, Any], float, Any] | None:
            return next((each for each in self.events if {"event": name, **facts}.items() <= each[0].items()), None)

        return wait_until(find, message=f"{name} comes")


def seconds_of(at: str) -> float:
    """Unix seconds of an event's `at`."""
    return datetime.fromisoformat(at).timestamp()


@contextmanager
def locked(serve: Serve) -> Iterator[None]:
    """Another process holds the database's write lock until the block ends."""
    other = sqlite3.connect(serve.state / "gitmirror.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.rollback()
        other.close()


@pytest.fixture
def serve(serve_factory: ServeFactory, upstream: HttpUpstream) -> Serve:
    """A node that refreshes when it is told to."""
    serve = serve_factory(repos=[upstream.url(WIDGETS)], refresh=SETTLED).start()
    serve.wait_for_repo(WIDGETS)
    return serve


@pytest.mark.slow
def test_who_hears_of_something_and_looks_finds_it(serve: Serve, upstream: HttpUpstream, tmp_path: Path) -> None:
    """A refresh in the history, with the health; a fetch in the activity; a turn in its session."""
    stores = open_stores(Layout(serve.state), create=False)

    def look(event: dict[str, Any]) -> Any:
        if event["event"] == "refreshed":
            [health] = stores.health.all().values()
            return stores.health.refreshes(WIDGETS)[0]["result"], health.tip
        if event["event"] == "hydrated":
            return [row["want"] for row in stores.activity.newest(1)]
        if event["event"] == "recorded":
            return [turn.commit for turn in stores.sessions.turns(WIDGETS, event["session"])]
        return None

    listener = Listener(serve, look)
    tip = add_commit(upstream.path(WIDGETS), "main", {"new": "1\n"})
    serve.cli("refresh", WIDGETS)
    assert listener.wait_for("refreshed")[2] == ("moved", tip)
    clone = serve.clone(tmp_path / "guest", WIDGETS, "--depth=1")
    assert listener.wait_for("hydrated")[2] == [tip]
    git("push", "--quiet", f"{serve.git_url}/{WIDGETS}", "HEAD:refs/agents/s-1", cwd=clone)
    assert listener.wait_for("recorded")[2] == [tip]
    listener.watch.close()
    stores.database.close()


@pytest.mark.slow
def test_a_database_that_hangs_mutes_nobody(
    serve_factory: ServeFactory, upstream: HttpUpstream, tmp_path: Path
) -> None:
    """Fetches, refreshes and the resulting conditions are published within about a second."""
    refresh = {"interval": "1s", "stale_after": "2s"}
    with serve_factory(repos=[upstream.url(WIDGETS)], refresh=refresh).start() as serve:
        serve.wait_for_repo(WIDGETS)
        listener = Listener(serve)
        with locked(serve):
            serve.clone(tmp_path / "guest", WIDGETS, "--depth=1")
            for name, facts in (("hydrated", {}), ("refreshed", {"result": "unchanged"})):
                assert listener.wait_for(name, **facts)[1] < SOON
            upstream.everywhere.fail = True
            assert listener.wait_for("refreshed", kind="server-error")[1] < SOON
            # By time alone, or by the refresh that failed.
            assert listener.wait_for("stale")[1] < SOON
        listener.watch.close()


class Hanging:
    """Stands for the audit log of a database that hangs, and for the turns of one that then fails."""

    def __init__(self) -> None:
        self.go_on = threading.Event()

    def record_outcomes(self, outcomes: list[tuple[int, str, str | None]], push: str) -> set[int]:
        """Hang."""
        self.go_on.wait(60)
        return {number for number, *_ in outcomes}

    async def book(self, push: object, size: int) -> None:
        """Fail."""
        raise StoreError("it is gone")


@pytest.mark.slow
def test_a_turn_is_told_while_its_outcome_cannot_be_logged(tmp_path: Path) -> None:
    """Once, after a second. The push itself is answered only once the database has stored its outcome."""
    audit, told = Hanging(), list[tuple[Event, float]]()
    repo = Repo(1, WIDGETS, "https://example.com/acme/widgets", None, "cli", None, True, 0.0)
    command = RefCommand(ZERO_OID, "1" * 40, "refs/agents/s-1")

    async def main() -> None:
        began = time.monotonic()
        pushes = PushAuthorizer(
            Layout(tmp_path),
            cast(HookGuard, None),
            cast(AuditLog, audit),
            cast(TurnRecorder, audit),
            cast(FoundTurns, None),
            Quota(RecordingConfig, time.monotonic),
            RecordingConfig,
            cast(Callable[[str], Mirror], None),
            lambda event: told.append((event, time.monotonic() - began)),
            lambda guest: True,
            ThisNodeAlone(),
        )
        ruling = PushDecision("p", repo, "10.0.0.7", (command,), attempts=(1,))
        concluding = asyncio.create_task(pushes.conclude(ruling, {command.ref: None}, 10))
        while not told:
            await asyncio.sleep(0.01)
        assert not concluding.done()
        audit.go_on.set()
        await concluding

    asyncio.run(main())
    [(event, when)] = told
    assert isinstance(event, TurnRecorded) and (event.session, event.change.new) == ("s-1", "1" * 40)
    assert TELL_WITHIN <= when < SOON


class Clocked:
    """Rows and when each was told; the database takes `hang` seconds for a batch, or fails."""

    def __init__(self, hang: float = 0.0, fails: bool = False) -> None:
        self.hang, self.fails = threading.Event(), fails
        if not hang:
            self.hang.set()
        self.stored: list[int] = []
        self.told: list[tuple[int, bool, float]] = []
        self.began = time.monotonic()
        self.queue: WriteBehind[int] = WriteBehind("numbers", self._record, 0.01, self._tell)

    def _record(self, rows: Sequence[int]) -> None:
        self.hang.wait(60)
        if self.fails:
            raise StoreError("it is gone")
        self.stored += rows

    def _tell(self, row: int) -> None:
        self.told.append((row, row in self.stored, time.monotonic() - self.began))

    async def until(self, count: int) -> None:
        """Wait until so many were told."""
        end = time.monotonic() + 60
        while len(self.told) < count:
            assert time.monotonic() < end, self.told
            await asyncio.sleep(0.005)


def run(clocked: Clocked, *adds: int) -> None:
    """Add rows to a queue that runs, and wait until they are told."""

    async def main() -> None:
        loop = asyncio.create_task(clocked.queue.run())
        for row in adds:
            clocked.queue.add(row)
            await asyncio.sleep(0.05)
        await clocked.until(len(adds))
        clocked.hang.set()
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)

    asyncio.run(main())


def test_rows_are_told_in_order_when_they_are_stored() -> None:
    clocked = Clocked()
    run(clocked, 1, 2, 3)
    assert [(row, stored) for row, stored, _ in clocked.told] == [(1, True), (2, True), (3, True)]


@pytest.mark.slow
def test_rows_that_hang_are_told_in_order_after_a_second() -> None:
    """This includes rows that come while the database hangs. None is reported twice."""
    clocked = Clocked(hang=20)
    run(clocked, 1, 2, 3)
    assert [row for row, _, _ in clocked.told] == [1, 2, 3]
    assert all(TELL_WITHIN <= when < SOON for _, _, when in clocked.told)


def test_rows_that_cannot_be_stored_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_behind, "TELL_WITHIN", 3600.0)
    clocked = Clocked(fails=True)
    run(clocked, 1)
    assert [(row, stored) for row, stored, _ in clocked.told] == [(1, False)]


@pytest.mark.slow
def test_what_waits_is_told_before_an_end() -> None:
    """Also when the database hangs just then."""

    async def main(clocked: Clocked) -> list[int]:
        clocked.queue.add(1)
        clocked.queue.add(2)
        await clocked.queue.settle()
        clocked.hang.set()
        return [row for row, _, _ in clocked.told]

    for hang in (0, 20):
        assert asyncio.run(main(Clocked(hang))) == [1, 2]


@pytest.mark.slow
def test_a_block_that_stores_is_told_of_once() -> None:
    """The report comes when the block ends or fails, or after a second, but not when it is cancelled."""
    told = list[str]()

    async def store(name: str, seconds: float, fails: bool = False) -> None:
        with once_stored(lambda: told.append(name)):
            await asyncio.sleep(seconds)
            if fails:
                raise StoreError("it is gone")

    async def main() -> None:
        await store("quick", 0)
        with pytest.raises(StoreError):
            await store("failed", 0, fails=True)
        cancelled, slow = asyncio.create_task(store("cancelled", 9)), asyncio.create_task(store("slow", 1.2))
        await asyncio.sleep(0.05)
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)
        assert told == ["quick", "failed"]
        await slow

    asyncio.run(main())
    assert told == ["quick", "failed", "slow"]
