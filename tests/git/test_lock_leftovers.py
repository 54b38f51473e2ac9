"""Who may work on a mirror at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from appliance.core.git.mirror_locks import MirrorLocks


def play(script: Callable[[MirrorLocks], Awaitable[None]]) -> None:
    """Run `script` with locks of its own; nothing in it may take long."""

    async def main() -> None:
        async with asyncio.timeout(60):
            await script(MirrorLocks())

    asyncio.run(main())


async def turns() -> None:
    """Let everything run that can."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_fetches_and_pushes_never_wait_for_each_other() -> None:
    """Any number of sharers work at once, even while a repack waits."""

    async def script(locks: MirrorLocks) -> None:
        async with locks.shared("a/b"):
            repack = asyncio.create_task(_hold(locks, "a/b"))
            await turns()
            async with locks.shared("a/b"), locks.shared("a/b", preempt=True):
                assert not repack.done()
        await repack

    play(script)


def test_a_repack_is_alone() -> None:
    """It starts when the last one left, and the next waits until it is done."""

    async def script(locks: MirrorLocks) -> None:
        order: list[str] = []
        async with locks.exclusive("a/b"):
            waiting = asyncio.create_task(_hold(locks, "a/b", order, "second repack"))
            fetch = asyncio.create_task(_share(locks, "a/b", order, "fetch"))
            async with locks.exclusive("c/d"):
                await turns()
            order.append("first repack")
        await asyncio.gather(waiting, fetch)
        assert order[0] == "first repack" and sorted(order) == ["fetch", "first repack", "second repack"]

    play(script)


def test_only_a_push_asks_a_repack_to_give_way() -> None:
    """A fetch waits for it."""

    async def script(locks: MirrorLocks) -> None:
        asked = 0

        def yield_place() -> None:
            nonlocal asked
            asked += 1

        async with locks.exclusive("a/b", yield_place):
            fetch = asyncio.create_task(_share(locks, "a/b"))
            await turns()
            assert asked == 0 and not fetch.done()
            push = asyncio.create_task(_share(locks, "a/b", preempt=True))
            await turns()
            assert asked == 1 and not push.done()
        await asyncio.gather(fetch, push)
        async with locks.shared("a/b", preempt=True):
            assert asked == 1

    play(script)


@pytest.mark.parametrize("exclusive", [False, True])
def test_who_is_cancelled_leaves_the_mirror_free(exclusive: bool) -> None:
    """Cancelling releases the lock, both while it is held and while a task waits for it."""

    async def script(locks: MirrorLocks) -> None:
        forever = asyncio.Event()
        holder = asyncio.create_task(_hold(locks, "a/b", until=forever))
        await turns()
        waiter = asyncio.create_task(_hold(locks, "a/b") if exclusive else _share(locks, "a/b"))
        await turns()
        for task in (waiter, holder):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        async with locks.exclusive("a/b"):
            pass

    play(script)


async def _hold(
    locks: MirrorLocks,
    name: str,
    order: list[str] | None = None,
    word: str = "",
    until: asyncio.Event | None = None,
) -> None:
    async with locks.exclusive(name):
        if order is not None:
            order.append(word)
        if until is not None:
            await until.wait()


async def _share(
    locks: MirrorLocks, name: str, order: list[str] | None = None, word: str = "", *, preempt: bool = False
) -> None:
    async with locks.shared(name, preempt=preempt):
        if order is not None:
            order.append(word)
