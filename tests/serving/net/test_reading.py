"""The budget for requests: what counts, which requests wait, and which give way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from appliance.core.serving.net import reading
from appliance.core.serving.net.acceptor import Busy
from appliance.core.serving.net.reading import SMALL, Budget
from appliance.core.serving.net.seats import Peer

A, B = Peer("a"), Peer("b")
MOST = Budget.MOST


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rules in less time."""
    monkeypatch.setattr(reading, "POLL", 0.01)
    monkeypatch.setattr(reading, "WAIT", 0.3)


async def hold(budget: Budget, peer: Peer, size: int, *, answering: bool = False) -> None:
    """A request that never ends."""
    with budget.share(peer) as share:
        await share.grow(size)
        if answering:
            share.answering()
        await asyncio.Event().wait()


def with_holders(
    *holders: tuple[Peer, int], work: Callable[[Budget, list[asyncio.Task[None]]], Awaitable[None]]
) -> None:
    """Runs `work` beside requests that hold so much each."""

    async def run() -> None:
        budget = Budget()
        tasks = [asyncio.create_task(hold(budget, peer, size)) for peer, size in holders]
        await asyncio.sleep(0)
        await work(budget, tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert budget.used == 0

    asyncio.run(run())


def test_small_requests_are_read_whatever_others_hold() -> None:
    """All of the budget is taken, and they do not even wait."""

    async def work(budget: Budget, tasks: list[asyncio.Task[None]]) -> None:
        for _ in range(100):
            with budget.share(B) as share:
                await asyncio.wait_for(share.grow(SMALL), 2)

    with_holders((A, MOST + SMALL), work=work)


def test_who_finds_it_spent_waits_until_there_is_room() -> None:
    """And is told to come back when none comes."""

    async def work(budget: Budget, tasks: list[asyncio.Task[None]]) -> None:
        with budget.share(B) as share:
            with pytest.raises(Busy):
                await share.grow(2 * SMALL)
            asyncio.get_running_loop().call_later(0.05, tasks[0].cancel)
            await share.grow(1)

    with_holders((A, MOST + SMALL), work=work)


def test_a_slow_request_makes_way_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """The slowest request of the peer that holds the most is refused with the reason. The others stay."""
    monkeypatch.setattr(reading, "READING_GRACE", 0.05)

    async def work(budget: Budget, tasks: list[asyncio.Task[None]]) -> None:
        with budget.share(B) as share:
            await share.grow(2 * SMALL)
        done, _ = await asyncio.wait(tasks, timeout=0.05)
        assert done == {tasks[1]} and isinstance(tasks[1].exception(), Busy)

    with_holders((A, MOST * 5 // 8), (A, MOST // 8), (B, MOST // 4 + 3 * SMALL), work=work)


def test_nobody_makes_way_for_a_peer_that_holds_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """The greediest one gets nothing of the others."""
    monkeypatch.setattr(reading, "READING_GRACE", 0.0)

    async def work(budget: Budget, tasks: list[asyncio.Task[None]]) -> None:
        with budget.share(A) as share:
            await share.grow(MOST * 3 // 4)
            with pytest.raises(Busy):
                await share.grow(MOST // 2)
        assert not tasks[0].done()

    with_holders((B, MOST // 8), work=work)


def test_the_same_request_of_many_guests_counts_once() -> None:
    """It is in memory once, and its charge ends with the last guest that uses it."""

    async def run() -> None:
        budget = Budget()
        with budget.share(A) as first:
            await first.grow(SMALL + 1000)
            with budget.share(A) as second:
                await second.grow(SMALL + 500)
                second.adopt(first.charge)
                assert budget.used == 1000
            assert budget.used == 1000
        assert budget.used == 0
        with budget.share(B) as later:
            later.adopt(first.charge)
            assert budget.used == 1000
        assert budget.used == 0

    asyncio.run(run())


def test_a_request_that_is_alone_is_never_refused() -> None:
    """Its own bounds are enough."""

    async def run() -> None:
        budget = Budget()
        with budget.share(A) as share:
            await share.grow(2 * MOST)
        assert budget.used == 0

    asyncio.run(run())


def test_who_is_cancelled_otherwise_is_not_told_to_come_back() -> None:
    """A deadline stays a deadline."""

    async def run() -> None:
        budget = Budget()
        task = asyncio.create_task(hold(budget, A, MOST, answering=True))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert budget.used == 0

    asyncio.run(run())
