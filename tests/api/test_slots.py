"""Who may read mirrors at once: few in all, fewer of one caller, and nobody waits behind one that may not."""

from __future__ import annotations

import asyncio

import pytest

from appliance.core.api.problem import BUSY, Problem
from appliance.core.api.slots import OPERATOR, Slot, Slots


async def _waiting(slots: Slots, caller: str) -> asyncio.Task[Slot]:
    """A task that waits for a slot, or has it already."""
    task = asyncio.create_task(slots.take(caller))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return task


def test_one_caller_does_not_have_them_all() -> None:
    """A caller with its share waits, and others pass it by."""

    async def test() -> None:
        slots = Slots(for_operator=0, most=3, most_each=2)
        mine = [await slots.take("a") for _ in range(2)]
        third = await _waiting(slots, "a")
        other = await slots.take("b")
        assert not third.done()
        other.release()
        await asyncio.sleep(0)
        assert not third.done(), "that slot is for others"
        mine[0].release()
        (await third).release()

    asyncio.run(test())


def test_the_operator_finds_a_slot_when_tokens_hold_all_of_theirs() -> None:
    """Nor do its own count as theirs."""

    async def test() -> None:
        slots = Slots(most=4, most_each=2, patience=0.01, for_operator=1)
        held = [await slots.take(token) for token in ("a", "a", "b")]
        with pytest.raises(Problem):
            await slots.take("c")
        first = await slots.take(OPERATOR)
        held.pop().release()
        second = await slots.take(OPERATOR)
        with pytest.raises(Problem):
            await slots.take("c")
        first.release()
        await slots.take("c")
        second.release()

    asyncio.run(test())


def test_who_has_waited_longest_is_next() -> None:
    """In the order in which they came, as far as each may."""

    async def test() -> None:
        slots = Slots(for_operator=0, most=1, most_each=1)
        slot, order = await slots.take("a"), []

        async def take(caller: str) -> None:
            taken = await slots.take(caller)
            order.append(caller)
            taken.release()

        tasks = [asyncio.create_task(take(caller)) for caller in "abcd"]
        await asyncio.sleep(0)
        slot.release()
        await asyncio.gather(*tasks)
        assert order == list("abcd")

    asyncio.run(test())


def test_one_that_waits_in_vain_is_told_to_come_back() -> None:
    """With `Retry-After`, and nothing is left of it."""

    async def test() -> None:
        slots = Slots(for_operator=0, most=1, most_each=1, patience=0.01)
        slot = await slots.take("a")
        with pytest.raises(Problem) as caught:
            await slots.take("b")
        assert (caught.value.kind, caught.value.headers) == (BUSY, {"Retry-After": "2"})
        slot.release()
        (await slots.take("c")).release()

    asyncio.run(test())


def test_a_slot_that_is_released_twice_is_released_once() -> None:
    """Otherwise there would be more and more of them."""

    async def test() -> None:
        slots = Slots(for_operator=0, most=1, most_each=1, patience=0.01)
        slot = await slots.take("a")
        slot.release()
        slot.release()
        await slots.take("a")
        with pytest.raises(Problem):
            await slots.take("a")

    asyncio.run(test())


@pytest.mark.parametrize("was_given", [False, True])
def test_a_caller_that_leaves_keeps_no_slot(was_given: bool) -> None:
    """Neither while it waits, nor at the moment when it is given one."""

    async def test() -> None:
        slots = Slots(for_operator=0, most=1, most_each=1, patience=5)
        slot = await slots.take("a")
        leaving = await _waiting(slots, "b")
        if was_given:
            slot.release()
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        slot.release()
        async with asyncio.timeout(4):
            (await slots.take("c")).release()

    asyncio.run(test())
