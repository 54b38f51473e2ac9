"""Turns are bounded in rate and number, and shared between peers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest

from appliance.core.refresh.fair_turns import FairTurns, TurnLimits

LIMITS = TurnLimits(per_minute=60, burst=100, at_once=lambda: 2, holds=10.0, most_running=4)


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        """The time."""
        return self.now


class Players:
    """Those who want turns; `order` has the peers in the order in which they got one."""

    def __init__(self, turns: FairTurns) -> None:
        self.turns = turns
        self.order: list[str] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.ends: list[asyncio.Event] = []

    async def want(self, *peers: str) -> None:
        """Have each want a turn and keep it."""
        for peer in peers:
            self.ends.append(asyncio.Event())
            self.tasks.append(asyncio.create_task(self._play(peer, self.ends[-1])))
        await self.settle()

    async def _play(self, peer: str, end: asyncio.Event) -> None:
        async with self.turns.turn([peer]):
            self.order.append(peer)
            await end.wait()

    async def settle(self) -> None:
        """Let everything happen that can."""
        for _ in range(10):
            await asyncio.sleep(0)

    async def stop(self) -> None:
        """End all."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


def run(test: Callable[[Players, Clock], Coroutine[Any, Any, None]], limits: TurnLimits = LIMITS) -> None:
    """Run a test in a loop of its own."""

    async def main() -> None:
        clock = Clock()
        players = Players(FairTurns(limits, clock))
        try:
            await test(players, clock)
        finally:
            await players.stop()

    asyncio.run(main())


def test_a_peer_with_many_wishes_does_not_delay_another() -> None:
    async def test(players: Players, clock: Clock) -> None:
        await players.want(*["greedy"] * 50, "other")
        assert players.order == ["greedy", "greedy"]
        players.ends[0].set()
        await players.settle()
        assert players.order == ["greedy", "greedy", "other"]

    run(test)


def test_what_a_greedy_peer_wanted_first_is_not_late_for_another() -> None:
    async def test(players: Players, clock: Clock) -> None:
        await players.want(*["greedy"] * 50)
        peers = {"greedy"}
        order = []

        async def shared() -> None:
            async with players.turns.turn(peers):
                order.append("shared")

        players.tasks.append(asyncio.create_task(shared()))
        await players.settle()
        peers.add("other")
        players.ends[0].set()
        await players.settle()
        assert order == ["shared"]

    run(test)


def test_what_hangs_gives_its_place_back_up_to_a_number() -> None:
    """One peer has at most half of that number."""

    async def test(players: Players, clock: Clock) -> None:
        await players.want(*["greedy"] * 5, *["other"] * 5)
        assert len(players.order) == 2
        for _ in range(3):
            clock.now += 10
            await asyncio.sleep(0.15)
        assert sorted(players.order) == ["greedy", "greedy", "other", "other"]
        players.ends[0].set()
        await asyncio.sleep(0.15)
        assert len(players.order) == 5

    run(test)


def test_the_rate() -> None:
    async def test(players: Players, clock: Clock) -> None:
        for end in range(5):
            await players.want("peer")
            players.ends[end].set()
            await players.settle()
        assert len(players.order) == 3
        clock.now += 1
        await asyncio.sleep(0.15)
        assert len(players.order) == 4

    run(test, replace(LIMITS, burst=3))


@pytest.mark.parametrize("at_the_same_moment", [False, True])
def test_who_gives_up_takes_nothing(at_the_same_moment: bool) -> None:
    async def test(players: Players, clock: Clock) -> None:
        await players.want("a", "b", "c", "d")
        assert players.order == ["a", "b"]
        if at_the_same_moment:
            players.ends[0].set()
            await asyncio.sleep(0)
        players.tasks[2].cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await players.tasks[2]
        players.ends[0].set()
        await players.settle()
        assert players.order[-1] == "d"

    run(test)
