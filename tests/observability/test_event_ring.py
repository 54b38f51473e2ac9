"""The ring of events: what a subscriber gets, in which order, and what it is told about events that are gone."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from typing import Any

import pytest

from appliance.core.events.facts import Event, FetchBegan, PushRuled, RefreshEnded
from appliance.core.models import Health, PushDecision, RefChange, RefreshOutcome, Repo
from appliance.core.observability import event_ring
from appliance.core.observability.event_ring import EventRing
from appliance.core.observability.event_stream import (
    MOST_TAKEN,
    MOST_TAKEN_BYTES,
    WOKEN_AT_ONCE,
    EventStream,
    StreamedEvent,
    Subscription,
)

REPO = Repo(1, "o/x", "https://example.com/o/x", None, "cli", None, True, 0.0)
NO_TIME = 0.0
"""Seconds for a `take` that only looks."""


def fetch(number: int) -> FetchBegan:
    """A small event with a number."""
    return FetchBegan(repo=REPO, want=str(number), shape="depth 1", client="10.0.0.7", protocol="git")


def pushed() -> PushRuled:
    """An event with another name."""
    return PushRuled(repo=REPO, decision=PushDecision("p", REPO, "10.0.0.7", ()))


def large() -> RefreshEnded:
    """An event of several KiB."""
    moved = tuple(RefChange(f"refs/heads/{number:060}", None, "1" * 40) for number in range(100))
    return RefreshEnded(repo=REPO, outcome=RefreshOutcome("o/x", 0.0, 0.1, moved), health=Health(), learnt={})


def publish(stream: EventStream, first: int, last: int) -> None:
    """Publishes the events with the numbers from `first` to `last`."""
    for number in range(first, last + 1):
        stream.publish(fetch(number))


def wants(events: list[StreamedEvent]) -> list[int | str]:
    """The numbers of events, and `lost` with its count."""
    documents = [event.document for event in events]
    return [f"lost {each['count']}" if each["event"] == "lost" else int(each["want"]) for each in documents]


async def everything(subscription: Subscription) -> list[StreamedEvent]:
    """All that there is now."""
    found = list[StreamedEvent]()
    while batch := await subscription.take(NO_TIME):
        found += batch
    return found


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Runs an asynchronous test, with a deadline for hangs alone."""
    asyncio.run(asyncio.wait_for(test(), 60))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ring of ten events."""
    monkeypatch.setattr(event_ring, "MOST_KEPT", 10)


def test_events_come_in_order_with_ids_that_count_up() -> None:
    async def test() -> None:
        stream = EventStream()
        stream.publish(fetch(0))
        with stream.watching() as subscription:
            assert await subscription.take(NO_TIME) == []
            publish(stream, 1, 3)
            events = await subscription.take()
            assert wants(events) == [1, 2, 3]
            starts, numbers = zip(*(event.id.split("-") for event in events), strict=True)
            assert (len(set(starts)), numbers) == (1, ("2", "3", "4"))
            assert subscription.position == events[-1].id
            assert {event.name for event in events} == {"hydrating"}
            assert json.loads(events[0].json) == events[0].document

    run(test)


def test_two_starts_have_different_ids() -> None:
    """Also within one millisecond."""
    assert len({EventStream().id_of(1) for _ in range(100)}) == 100


@pytest.mark.parametrize("gone", [0, 1, 7, 10, 23])
@pytest.mark.usefixtures("small")
def test_who_comes_back_gets_what_it_has_not_got(gone: int) -> None:
    """From each place in the ring, nothing is missing and nothing comes twice."""

    async def test() -> None:
        stream = EventStream()
        publish(stream, 1, 10 + gone)
        for seen in range(gone, 11 + gone):
            with stream.watching(after=stream.id_of(seen)) as subscription:
                assert wants(await everything(subscription)) == list(range(seen + 1, 11 + gone))

    run(test)


@pytest.mark.usefixtures("small")
def test_who_was_away_for_too_long_learns_how_many_are_gone() -> None:
    """With the id of `lost`, it goes on after the events that are gone, and is not told of them again."""

    async def test() -> None:
        stream = EventStream()
        publish(stream, 1, 25)
        with stream.watching(after=stream.id_of(4)) as subscription:
            lost, *rest = await everything(subscription)
        assert wants([lost, *rest]) == ["lost 11", *range(16, 26)]
        with stream.watching(after=lost.id) as subscription:
            assert await everything(subscription) == rest
        publish(stream, 26, 27)
        with stream.watching(after=lost.id) as subscription:
            assert wants(await everything(subscription)) == ["lost 2", *range(18, 28)]

    run(test)


@pytest.mark.usefixtures("small")
def test_who_is_slow_learns_how_many_are_gone() -> None:
    async def test() -> None:
        stream = EventStream()
        publish(stream, 1, 3)
        with stream.watching() as slow, stream.watching() as quick:
            for number in range(4, 21):
                stream.publish(fetch(number))
                assert wants(await quick.take()) == [number]
            assert wants(await everything(slow)) == ["lost 7", *range(11, 21)]
            publish(stream, 21, 31)
            assert wants(await everything(slow)) == ["lost 1", *range(22, 32)]

    run(test)


STRANGE = ["", "-", "7", "x-1", "{start}-", "{start}-01", "{start}--1", "{start}-+1", "{start}-\uff11", "{start}-1 "]


@pytest.mark.parametrize("after", [*STRANGE, "{start}-13", "{start}-" + "9" * 5000, "a" * 12 + "-5", "\ud800-1", "\0"])
@pytest.mark.usefixtures("small")
def test_an_id_of_another_start_gets_all_that_there_is(after: str) -> None:
    """So does one that was never given. How many were lost, nobody knows; it is told once."""

    async def test() -> None:
        stream = EventStream()
        publish(stream, 1, 12)
        start = stream.id_of(0).partition("-")[0]
        with stream.watching(after=after.replace("{start}", start)) as subscription:
            lost, *rest = await everything(subscription)
        assert wants([lost, *rest]) == ["lost None", *range(3, 13)]
        with stream.watching(after=lost.id) as subscription:
            assert await everything(subscription) == rest

    run(test)


def test_an_id_of_another_start_is_answered_before_anything_happens() -> None:
    """Its `lost` has an id too: nothing that happens from then on is missed."""

    async def test() -> None:
        stream = EventStream()
        with stream.watching(after="0123456789ab-5") as subscription:
            [lost] = await subscription.take()
        publish(stream, 1, 2)
        with stream.watching(after=lost.id) as subscription:
            assert (lost.document["count"], wants(await everything(subscription))) == (None, [1, 2])

    run(test)


@pytest.mark.usefixtures("small")
def test_some_names_alone() -> None:
    """Only their events come, and only theirs are counted as lost; `lost` itself always comes."""

    async def test() -> None:
        stream = EventStream()
        only = frozenset({"hydrating"})
        with stream.watching(only) as subscription:
            for number in range(1, 4):
                stream.publish(pushed())
                stream.publish(fetch(number))
            assert wants(await everything(subscription)) == [1, 2, 3]
            for _ in range(50):
                stream.publish(pushed())
            assert await everything(subscription) == []
            for number in range(4, 16):
                stream.publish(pushed())
                stream.publish(fetch(number))
            assert wants(await everything(subscription)) == ["lost 7", *range(11, 16)]
        with stream.watching(only, after=stream.id_of(stream.ring.oldest + 2)) as subscription:
            assert wants(await everything(subscription)) == list(range(12, 16))
            stream.publish(fetch(16))
            for _ in range(10):
                stream.publish(pushed())
            assert wants(await everything(subscription)) == ["lost 1"]
        with stream.watching(only, after=stream.id_of(3)) as subscription:
            assert wants(await everything(subscription)) == ["lost None"]

    run(test)


def test_the_ring_is_bounded_in_bytes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest make room. An event larger than the ring is kept alone."""
    monkeypatch.setattr(event_ring, "MOST_BYTES", 1000)
    ring = EventRing()
    for _ in range(30):
        ring.append("small", b"x" * 100)
    assert (ring.oldest, ring.newest, ring.dropped(None)) == (21, 30, 20)
    ring.append("large", b"x" * 950)
    assert (ring.oldest, ring.newest) == (31, 31)
    ring.append("huge", b"x" * 5000)
    assert (ring.oldest, ring.event(32)) == (32, ("huge", b"x" * 5000))
    ring.append("small", b"x" * 100)
    assert (ring.oldest, ring.newest, ring.dropped(frozenset({"small", "huge"}))) == (33, 33, 31)


def test_what_is_taken_at_once_is_bounded() -> None:
    """In events and in bytes; an event that is larger comes alone."""

    async def test() -> None:
        stream = EventStream()
        size = len(json.dumps(large().document()))
        assert MOST_TAKEN_BYTES / 3 < size < MOST_TAKEN_BYTES
        with stream.watching() as subscription:
            for _ in range(5):
                stream.publish(large())
            assert [len(await subscription.take()) for _ in range(5)] == [1] * 5
            publish(stream, 1, 10)
            taken = await everything(subscription)
            assert wants(taken) == list(range(1, 11))
            publish(stream, 1, 2 * MOST_TAKEN)
            batch = await subscription.take()
            assert 1 < len(batch) <= MOST_TAKEN and sum(len(event.json) for event in batch) <= MOST_TAKEN_BYTES
            assert len(await everything(subscription)) == 2 * MOST_TAKEN - len(batch)

    run(test)


def test_the_bytes_of_an_event_are_kept_once() -> None:
    async def test() -> None:
        stream = EventStream()
        with stream.watching() as one, stream.watching() as other:
            stream.publish(fetch(1))
            assert (await one.take())[0].json is (await other.take())[0].json

    run(test)


@pytest.mark.slow
def test_a_thousand_who_take_nothing_cost_their_cursors() -> None:
    """However much is published meanwhile: beyond the ring itself, at most 512 bytes each."""

    async def test() -> None:
        stream = EventStream()
        publish(stream, 1, event_ring.MOST_KEPT)
        with ExitStack() as all_of_them:
            tracemalloc.start()
            subscriptions = [all_of_them.enter_context(stream.watching()) for _ in range(1000)]
            publish(stream, 1, 2 * event_ring.MOST_KEPT)
            grown, _ = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            ring = sum(len(stream.ring.event(number)[1]) + 100 for number in range(event_ring.MOST_KEPT))
            assert stream.watchers == 1000
            assert wants((await subscriptions[0].take())[:1]) == [f"lost {event_ring.MOST_KEPT}"]
        assert stream.watchers == 0
        assert grown - ring < 1000 * 1024

    run(test)


class Turns:
    """Counts the turns of the event loop, each of which serves other connections."""

    def __init__(self) -> None:
        self.woken: list[int] = []
        self.now = 0

    def turn(self) -> None:
        """Ends a turn in which `now` subscribers woke."""
        self.woken.append(self.now)
        self.now = 0
        asyncio.get_running_loop().call_soon(self.turn)


def test_a_thousand_wake_a_few_at_a_time() -> None:
    """One event wakes all of them, once each, and the loop serves others meanwhile."""

    async def test() -> None:
        stream, turns = EventStream(), Turns()
        got = list[list[int | str]]()

        async def follow() -> None:
            with stream.watching() as subscription:
                for _ in range(2):
                    got.append(wants(await subscription.take()))
                    turns.now += 1

        tasks = [asyncio.create_task(follow()) for _ in range(1000)]
        while len(stream._waiting) < 1000:
            await asyncio.sleep(0)
        turns.turn()
        for number in (1, 2):
            stream.publish(fetch(number))
            while len(got) < number * 1000:
                await asyncio.sleep(0)
        await asyncio.gather(*tasks)
        assert got == [[1]] * 1000 + [[2]] * 1000
        assert max(turns.woken) <= WOKEN_AT_ONCE
        assert not stream._waiting and not stream._is_waking

    run(test)


def test_an_event_while_others_wake_is_missed_by_nobody() -> None:
    async def test() -> None:
        stream = EventStream()
        got = list[list[int | str]]()

        async def follow() -> None:
            mine = list[int | str]()
            with stream.watching() as subscription:
                while len(mine) < 50:
                    mine += wants(await subscription.take())
            got.append(mine)

        tasks = [asyncio.create_task(follow()) for _ in range(3 * WOKEN_AT_ONCE)]
        await asyncio.sleep(0)
        for number in range(50):
            stream.publish(fetch(number))
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)
        assert got == [list(range(50))] * len(tasks)

    run(test)


def test_who_gives_up_waiting_leaves_nothing_behind() -> None:
    """By a deadline or by being cancelled."""

    async def test() -> None:
        stream = EventStream()
        with stream.watching() as subscription:
            assert await subscription.take(0.001) == []
            waiting = asyncio.create_task(subscription.take())
            while not stream._waiting:
                await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            assert not stream._waiting
            stream.publish(fetch(1))
            assert wants(await subscription.take()) == [1]

    run(test)


def test_a_document_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """For any number of subscribers, and as it was when it happened."""
    made = list[Event]()
    document = FetchBegan.document

    def count(event: FetchBegan) -> dict[str, Any]:
        made.append(event)
        return document(event)

    monkeypatch.setattr(FetchBegan, "document", count)

    async def test() -> None:
        stream = EventStream()
        with ExitStack() as both:
            subscriptions = [both.enter_context(stream.watching()) for _ in range(2)]
            publish(stream, 1, 3)
            assert [wants(await each.take()) for each in subscriptions] == [[1, 2, 3]] * 2

    run(test)
    assert len(made) == 3
