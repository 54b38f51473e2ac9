"""Events as `text/event-stream`, read as the specification says that clients read it."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import ExitStack, aclosing
from typing import Any, cast

import pytest

from appliance.core.events.facts import FetchBegan
from appliance.core.models import Repo
from appliance.core.observability import event_ring, event_source
from appliance.core.observability.event_source import RETRY_MS
from appliance.core.observability.event_stream import MOST_TAKEN_BYTES, EventStream, Subscription

MOST_PER_CLIENT = 8 * 1024
"""The most bytes of Python objects for a client that waits; a thousand of them have 50 MB for all that they need."""


def fetch(want: str) -> FetchBegan:
    """An event."""
    repo = Repo(1, "o/x", "https://example.com/o/x", None, "cli", None, True, 0.0)
    return FetchBegan(repo=repo, want=want, shape="depth 1", client="10.0.0.7", protocol="git")


class Client:
    """Parses a stream line by line. `last_id` is what it sends as Last-Event-ID when it comes back."""

    def __init__(self) -> None:
        self.last_id = ""
        self.retry: int | None = None
        self.comments: list[str] = []
        self.events: list[dict[str, Any]] = []
        self.ids: list[str] = []
        self._id, self._data = "", list[str]()

    @property
    def wants(self) -> list[str]:
        """What the events are about; of `lost`, its name."""
        return [event.get("want", event["event"]) for event in self.events]

    def feed(self, data: bytes) -> None:
        """Takes the next bytes, which end with a whole message."""
        text = data.decode()
        assert text.endswith("\n\n")
        for line in text[:-1].split("\n"):
            name, _, value = line.partition(": ")
            if line == "":
                self._dispatch()
            elif name == "":
                self.comments.append(value)
            elif name == "id":
                self._id = value
            elif name == "data":
                self._data.append(value)
            elif name == "retry":
                self.retry = int(value)
            else:
                raise AssertionError(line)

    def _dispatch(self) -> None:
        self.last_id = self._id
        if self._data:
            self.events.append(json.loads("\n".join(self._data)))
            self.ids.append(self._id)
        self._data = []


async def read(source: AsyncIterator[bytes], client: Client) -> None:
    """Gives the client what comes next."""
    client.feed(await anext(source))


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Runs an asynchronous test, with a deadline for hangs alone."""
    asyncio.run(asyncio.wait_for(test(), 60))


def opened(subscription: Subscription, is_allowed: Callable[[], bool] = lambda: True) -> aclosing[Any]:
    """The bytes of a response, closed in the end as a server closes them."""
    return aclosing(cast(Any, event_source.event_source(subscription, is_allowed)))


def test_the_first_bytes_come_before_any_event() -> None:
    """A proxy passes the headers on with them. They are no event to the client, and hold its place."""

    async def test() -> None:
        stream, client = EventStream(), Client()
        stream.publish(fetch("before"))
        with stream.watching() as subscription:
            async with opened(subscription) as source:
                await read(source, client)
        assert (client.retry, client.events, len(client.comments)) == (RETRY_MS, [], 1)
        stream.publish(fetch("meanwhile"))
        with stream.watching(after=client.last_id) as subscription:
            async with opened(subscription) as source:
                await read(source, client)
                await read(source, client)
        assert client.wants == ["meanwhile"]

    run(test)


def test_a_client_that_comes_back_gets_each_event_once() -> None:
    """It is disconnected after each batch, and events with line breaks and foreign letters are events too."""

    async def test() -> None:
        stream, client = EventStream(), Client()
        wants = [f"{number}\r\n\ndata: ö\u2028\ud800\0" for number in range(40)]
        stream.publish(fetch("first"))
        with stream.watching() as subscription:
            async with opened(subscription) as source:
                await read(source, client)
        for number in range(0, 40, 4):
            for want in wants[number : number + 4]:
                stream.publish(fetch(want))
            with stream.watching(after=client.last_id) as subscription:
                async with opened(subscription) as source:
                    await read(source, client)
                    await read(source, client)
            assert client.last_id == client.ids[-1]
        assert client.wants == wants
        assert client.ids == sorted(set(client.ids), key=lambda each: int(each.partition("-")[2]))

    run(test)


def test_who_comes_back_after_a_restart_is_told_and_goes_on() -> None:
    async def test() -> None:
        before, stream, client = EventStream(), EventStream(), Client()
        stream.publish(fetch("1"))
        client.last_id = before.id_of(0)
        with stream.watching(after=client.last_id) as subscription:
            async with opened(subscription) as source:
                await read(source, client)
                await read(source, client)
        assert (client.wants, client.events[0]["count"]) == (["lost", "1"], None)

    run(test)


def test_who_is_cut_off_before_it_is_told_of_a_loss_is_told_the_next_time() -> None:
    """The first bytes gave it an id of this `serve`, with which nothing is lost."""

    async def test() -> None:
        before, stream, client = EventStream(), EventStream(), Client()
        stream.publish(fetch("1"))
        client.last_id = before.id_of(0)
        for _ in range(2):
            with stream.watching(after=client.last_id) as subscription:
                async with opened(subscription) as source:
                    await read(source, client)
        with stream.watching(after=client.last_id) as subscription:
            async with opened(subscription) as source:
                await read(source, client)
                await read(source, client)
        assert client.wants == ["lost", "1"]

    run(test)


def test_a_quiet_stream_is_kept_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a comment, which moves the place of a client over events that it did not ask for."""
    monkeypatch.setattr(event_source, "KEEP_ALIVE", 0.01)

    async def test() -> None:
        stream, client = EventStream(), Client()
        with stream.watching(frozenset({"recorded"})) as subscription:
            async with opened(subscription) as source:
                await read(source, client)
                stream.publish(fetch("1"))
                for _ in range(3):
                    await read(source, client)
        assert (client.events, len(client.comments), client.last_id) == ([], 4, stream.id_of(1))

    run(test)


@pytest.mark.parametrize("happens", [False, True], ids=["quiet", "busy"])
def test_a_stream_that_is_no_longer_allowed_ends(happens: bool) -> None:
    """When it is woken, and before the next event goes out."""

    async def test() -> None:
        stream, client, allowed = EventStream(), Client(), [True]
        with stream.watching() as subscription:
            async with opened(subscription, lambda: allowed[0]) as source:
                await read(source, client)
                stream.publish(fetch("allowed"))
                await read(source, client)
                allowed[0] = False
                if happens:
                    stream.publish(fetch("secret"))
                else:
                    asyncio.get_running_loop().call_later(0.01, stream.wake)
                with pytest.raises(StopAsyncIteration):
                    await read(source, client)
        assert client.wants == ["allowed"]

    run(test)


@pytest.mark.slow
@pytest.mark.parametrize("are_slow", [False, True], ids=["waiting", "slow"])
def test_a_thousand_clients_cost_little(are_slow: bool) -> None:
    """Those that wait cost their generators, and those that do not read hold one batch each."""

    async def test() -> None:
        stream = EventStream()
        with ExitStack() as all_of_them:
            sources = list[Any]()
            chunks = list[bytes]()
            for _ in range(event_ring.MOST_KEPT):
                stream.publish(fetch("old"))
            tracemalloc.start()
            for _ in range(1000):
                subscription = all_of_them.enter_context(stream.watching(after=stream.id_of(0) if are_slow else None))
                sources.append(event_source.event_source(subscription))
                await anext(sources[-1])
            if are_slow:
                chunks += [await anext(source) for source in sources]
                tasks = []
            else:
                tasks = [asyncio.create_task(anext(source)) for source in sources]
                while len(stream._waiting) < len(tasks):
                    await asyncio.sleep(0)
            size, _ = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for source in sources:
                await source.aclose()
        assert size < 1000 * (MOST_PER_CLIENT + (2 * MOST_TAKEN_BYTES if are_slow else 0))

    run(test)
