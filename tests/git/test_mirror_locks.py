"""A mirror's lock: many fetches and pushes, or one repack, and whatever is cancelled leaves nothing locked."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from appliance.core.git.mirror_locks import MirrorLocks

NAME = "o/r"


def play(script: Coroutine[Any, Any, None]) -> None:
    """Runs `script`; what waits for ever fails after ten seconds."""

    async def bounded() -> None:
        async with asyncio.timeout(60):
            await script

    asyncio.run(bounded())


async def turns(count: int = 5) -> None:
    """Lets everything that can go on do so."""
    for _ in range(count):
        await asyncio.sleep(0)


class Holder:
    """A task that takes the lock, says so, and keeps it until it is let go."""

    def __init__(self, enter: Callable[[], contextlib.AbstractAsyncContextManager[None]]) -> None:
        self._enter = enter
        self._leave = asyncio.Event()
        self.has = False
        self.task = asyncio.create_task(self._hold())

    async def _hold(self) -> None:
        async with self._enter():
            self.has = True
            try:
                await self._leave.wait()
            finally:
                self.has = False

    def leave(self) -> None:
        """Lets it give the lock back, when its turn comes."""
        self._leave.set()

    async def let_go(self) -> None:
        """Gives it back."""
        self.leave()
        await self.task


def test_sharers_do_not_wait_for_each_other() -> None:
    """Fifty pushes and a fetch at once."""

    async def script() -> None:
        locks = MirrorLocks()
        holders = [Holder(lambda: locks.shared(NAME)) for _ in range(51)]
        await turns()
        assert all(holder.has for holder in holders)
        for holder in holders:
            await holder.let_go()

    play(script())


def test_an_exclusive_holder_waits_for_all_sharers_and_keeps_new_ones_out() -> None:
    """A repack never runs beside a fetch or push of the same mirror."""

    async def script() -> None:
        locks = MirrorLocks()
        sharers = [Holder(lambda: locks.shared(NAME)) for _ in range(2)]
        await turns()
        repack = Holder(lambda: locks.exclusive(NAME))
        for sharer in sharers:
            await turns()
            assert not repack.has
            await sharer.let_go()
        await turns()
        assert repack.has
        late = Holder(lambda: locks.shared(NAME))
        await turns()
        assert not late.has
        await repack.let_go()
        await turns()
        assert late.has
        await late.let_go()

    play(script())


def test_a_waiting_repack_holds_up_no_sharer() -> None:
    """A slow guest's push would hold up all others behind it."""

    async def script() -> None:
        locks = MirrorLocks()
        slow = Holder(lambda: locks.shared(NAME))
        await turns()
        repack = Holder(lambda: locks.exclusive(NAME))
        await turns()
        quick = Holder(lambda: locks.shared(NAME))
        await turns()
        assert quick.has and not repack.has
        await quick.let_go()
        await slow.let_go()
        await turns()
        assert repack.has
        await repack.let_go()

    play(script())


def test_two_exclusive_holders_take_turns() -> None:
    """A purge waits for a repack."""

    async def script() -> None:
        locks = MirrorLocks()
        one, other = Holder(lambda: locks.exclusive(NAME)), Holder(lambda: locks.exclusive(NAME))
        await turns()
        assert one.has and not other.has
        await one.let_go()
        await turns()
        assert other.has
        await other.let_go()

    play(script())


def test_mirrors_do_not_wait_for_each_other() -> None:
    """One lock for each name."""

    async def script() -> None:
        locks = MirrorLocks()
        one, other = Holder(lambda: locks.exclusive("o/a")), Holder(lambda: locks.exclusive("o/b"))
        await turns()
        assert one.has and other.has
        await one.let_go()
        await other.let_go()

    play(script())


def test_a_push_asks_a_repack_to_give_up_its_place() -> None:
    """A push, not a fetch, asks a repack to yield, and waits until it has."""

    async def script() -> None:
        locks, asked = MirrorLocks(), asyncio.Event()
        repack = Holder(lambda: locks.exclusive(NAME, asked.set))
        await turns()
        fetch = Holder(lambda: locks.shared(NAME))
        await turns()
        assert not asked.is_set(), "a fetch waits"
        push = Holder(lambda: locks.shared(NAME, preempt=True))
        await turns()
        assert asked.is_set()
        assert not push.has, "asked is not yet done"
        await repack.let_go()
        await turns()
        assert push.has and fetch.has
        await push.let_go()
        await fetch.let_go()

    play(script())


def test_a_later_repack_is_not_asked_for_an_earlier_push() -> None:
    """A holder that yielded is forgotten, and a push waits for a purge, which cannot yield."""

    async def script() -> None:
        locks, asked = MirrorLocks(), []
        await Holder(lambda: locks.exclusive(NAME, lambda: asked.append(1))).let_go()
        purge = Holder(lambda: locks.exclusive(NAME))
        await turns()
        push = Holder(lambda: locks.shared(NAME, preempt=True))
        await turns()
        assert asked == [] and not push.has
        await purge.let_go()
        await turns()
        await push.let_go()

    play(script())


async def both_free(locks: MirrorLocks) -> None:
    """Fails by its deadline when something still holds the lock."""
    async with asyncio.timeout(60):
        async with locks.exclusive(NAME):
            pass
        async with locks.shared(NAME):
            pass


Enter = Callable[[MirrorLocks], contextlib.AbstractAsyncContextManager[None]]
WAYS: list[Enter] = [lambda locks: locks.shared(NAME, preempt=True), lambda locks: locks.exclusive(NAME)]


@pytest.mark.parametrize("enter", WAYS, ids=["shared", "exclusive"])
@pytest.mark.parametrize("waiting", [True, False], ids=["while waiting", "while holding"])
def test_a_cancelled_holder_leaves_nothing_locked(enter: Enter, waiting: bool) -> None:
    """A guest that leaves, a serve that stops, at any moment."""

    async def script() -> None:
        locks = MirrorLocks()
        other = Holder(lambda: locks.exclusive(NAME)) if waiting else None
        await turns()
        holder = Holder(lambda: enter(locks))
        await turns()
        assert holder.has is not waiting
        holder.task.cancel()
        await asyncio.gather(holder.task, return_exceptions=True)
        if other:
            await other.let_go()
        await both_free(locks)

    play(script())


@pytest.mark.parametrize("first", range(4))
@pytest.mark.parametrize("second", range(4))
def test_a_second_cancellation_during_release_leaves_nothing_locked(first: int, second: int) -> None:
    """A deadline and the end of serve may both cancel one task, while others are waking up to take the lock."""

    async def script() -> None:
        locks = MirrorLocks()
        leaving, cancelled = Holder(lambda: locks.shared(NAME)), Holder(lambda: locks.shared(NAME))
        await turns()
        waiting = [Holder(lambda: locks.exclusive(NAME)) for _ in range(3)]
        await turns()
        leaving.leave()
        await turns(first)
        cancelled.task.cancel()
        await turns(second)
        cancelled.task.cancel()
        await asyncio.gather(leaving.task, cancelled.task, return_exceptions=True)
        for repack in waiting:
            await repack.let_go()
        await both_free(locks)

    play(script())


def test_any_mix_of_holders_and_cancellations_keeps_the_rule() -> None:
    """Never a repack beside anybody, and at the end nothing is locked: a few hundred steps by a fixed seed."""

    async def script() -> None:
        rng, locks = random.Random(4), MirrorLocks()
        now = {"shared": 0, "exclusive": 0}

        async def hold(kind: str, pauses: int) -> None:
            entered = locks.shared(NAME, preempt=bool(pauses % 2)) if kind == "shared" else locks.exclusive(NAME)
            async with entered:
                now[kind] += 1
                try:
                    assert now["exclusive"] <= 1
                    assert not (now["exclusive"] and now["shared"])
                    await turns(pauses)
                finally:
                    now[kind] -= 1

        tasks: list[asyncio.Task[None]] = []
        for _ in range(400):
            kind = rng.choice(["shared", "shared", "exclusive"])
            tasks.append(asyncio.create_task(hold(kind, rng.randrange(6))))
            if rng.random() < 0.3:
                rng.choice(tasks).cancel()
            await turns(rng.randrange(3))
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert [each for each in ended if each and not isinstance(each, asyncio.CancelledError)] == []
        await both_free(locks)

    play(script())


def test_an_error_inside_gives_the_lock_back() -> None:
    """The error reaches the caller unchanged."""

    async def script() -> None:
        locks = MirrorLocks()
        for enter in WAYS:
            with pytest.raises(ZeroDivisionError):
                async with enter(locks):
                    raise ZeroDivisionError
        await both_free(locks)

    play(script())
