"""The events of one `serve` as they happen: a stream of JSON documents for any number of subscribers.

The latest events are kept once for all. A subscriber is a place in them, so a slow one costs nothing and learns how
many events it lost. Each event has an id, `<start>-<number>`, and who comes back with the last one that it got goes on
after it. `start` is random, because a node without a clock of its own may start twice at the same time of day.

Nothing here may be called from another thread.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from appliance.core.events.facts import Document, Event, EventsLost
from appliance.core.observability.event_ring import EventRing

MOST_TAKEN, MOST_TAKEN_BYTES = 256, 16 * 2**10
"""The most events and bytes of JSON that `take` returns at once, though at least one event. What a slow subscriber has
taken is memory of its own: 16 MiB for a thousand of them."""
WOKEN_AT_ONCE = 32
"""The most subscribers that wake in one turn of the event loop. Between two turns, it serves other connections."""

UNKNOWN = "unknown"
"""The id of a place that nobody knows."""

_NUMBER = re.compile(r"0|[1-9][0-9]{0,18}", re.ASCII)


class StreamedEvent(NamedTuple):
    """An event as subscribers get it. They share one `json`, which has no line break."""

    id: str
    name: str
    json: bytes

    @property
    def document(self) -> Document:
        """What `json` holds."""
        return dict(json.loads(self.json))


class EventStream:
    """Keeps the latest events and wakes those who wait for more."""

    def __init__(self) -> None:
        self.ring = EventRing()
        self.watchers = 0
        """How many subscriptions there are now."""
        self._start = secrets.token_hex(6)
        self._waiting: OrderedDict[asyncio.Future[None], int] = OrderedDict()
        """Who waits, with the newest event that each has seen. The numbers never fall from one to the next."""
        self._is_waking = False

    def publish(self, event: Event) -> None:
        """Keeps the event's document, and wakes subscribers in the next turns of the loop.

        The document is encoded at once, because that takes a few microseconds, and an event may hold thousands of refs
        of which its document names a few.
        """
        self.ring.append(event.name, json.dumps(event.document()).encode())
        if self._waiting and not self._is_waking:
            asyncio.get_running_loop().call_soon(self._wake)
            self._is_waking = True

    @contextmanager
    def watching(self, names: frozenset[str] | None = None, after: str | None = None) -> Iterator[Subscription]:
        """Subscribes until the block ends: to all events, or to those with one of `names`.

        `after` is the id of the last event that the subscriber got. Without one it gets what is published from now on.
        If events after it are gone, the first event is `lost`. Their number is not known if the id is malformed or of
        another `serve`. Then all events that are kept follow: since each happened after this `serve` had started, the
        subscriber has seen none of them.
        """
        subscription = Subscription(self, names, after)
        self.watchers += 1
        try:
            yield subscription
        finally:
            self.watchers -= 1

    def id_of(self, number: int) -> str:
        """The id of the event with this number. 0 is the time before the first event."""
        return f"{self._start}-{number}"

    def number_of(self, event_id: str) -> int | None:
        """The number of the event with this id, kept or not. None if this `serve` has given no event that id."""
        start, _, number = event_id.rpartition("-")
        if start != self._start or not _NUMBER.fullmatch(number) or int(number) > self.ring.newest:
            return None
        return int(number)

    async def wait(self, seconds: float | None) -> None:
        """Waits until an event is published, or for `seconds`."""
        loop = asyncio.get_running_loop()
        woken: asyncio.Future[None] = loop.create_future()
        self._waiting[woken] = self.ring.newest
        timer = None if seconds is None else loop.call_later(seconds, _set, woken)
        try:
            await woken
        finally:
            self._waiting.pop(woken, None)
            if timer is not None:
                timer.cancel()

    def wake(self) -> None:
        """Lets all who wait look at whether they still may."""
        for woken in list(self._waiting):
            _set(woken)

    def _wake(self) -> None:
        for _ in range(WOKEN_AT_ONCE):
            if not self._waiting or next(iter(self._waiting.values())) == self.ring.newest:
                self._is_waking = False
                return
            woken, _ = self._waiting.popitem(last=False)
            _set(woken)
        asyncio.get_running_loop().call_soon(self._wake)


class Subscription:
    """A place in the stream. `EventStream.watching` makes it."""

    __slots__ = ("_cursor", "_is_stranger", "_names", "_passed", "_stream")

    def __init__(self, stream: EventStream, names: frozenset[str] | None, after: str | None) -> None:
        known = stream.ring.newest if after is None else stream.number_of(after)
        self._stream = stream
        self._names = names
        self._is_stranger = known is None
        """Whether it has yet to be told that nobody knows what it lost."""
        self._cursor = stream.ring.oldest - 1 if known is None else known
        """The number of the last event that was taken or skipped."""
        self._passed = stream.ring.passed(self._cursor, names)
        """How many events with one of `names` came until then; None if nobody knows."""

    @property
    def position(self) -> str:
        """The id after which the next `take` goes on.

        While it has yet to be told that nobody knows what it lost, this is no id of this `serve`: whoever came back
        with one would no longer be told.
        """
        return UNKNOWN if self._is_stranger else self._stream.id_of(self._cursor)

    async def take(
        self, within: float | None = None, is_allowed: Callable[[], bool] = lambda: True
    ) -> list[StreamedEvent]:
        """Waits for events and returns some, oldest first. Returns none if none came `within` so many seconds.

        It also returns none once `is_allowed` is false, which it looks at when `EventStream.wake` was called.

        If some were dropped, `lost` is first. Its id is that of the last one dropped, so that nobody who comes back
        with it is told of them again.
        """
        loop = asyncio.get_running_loop()
        deadline = None if within is None else loop.time() + within
        while not (events := self._take_kept()):
            left = None if deadline is None else deadline - loop.time()
            if (left is not None and left <= 0) or not is_allowed():
                break
            await self._stream.wait(left)
        return events

    def _take_kept(self) -> list[StreamedEvent]:
        ring = self._stream.ring
        taken, size = self._lost(), 0
        while self._cursor < ring.newest and len(taken) < MOST_TAKEN:
            name, document = ring.event(self._cursor + 1)
            if self._names is None or name in self._names:
                size += len(document)
                if taken and size > MOST_TAKEN_BYTES:
                    break
                taken.append(StreamedEvent(self._stream.id_of(self._cursor + 1), name, document))
                if self._passed is not None:
                    self._passed += 1
            self._cursor += 1
        return taken

    def _lost(self) -> list[StreamedEvent]:
        """The event `lost` if events before the oldest one were not taken."""
        ring = self._stream.ring
        gone = ring.oldest - 1
        if self._cursor >= gone and not self._is_stranger:
            return []
        dropped = ring.dropped(self._names)
        count = None if self._is_stranger or self._passed is None else dropped - self._passed
        self._cursor, self._passed, self._is_stranger = gone, dropped, False
        if count == 0:
            return []
        lost = EventsLost(count=count)
        return [StreamedEvent(self._stream.id_of(gone), lost.name, json.dumps(lost.document()).encode())]


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
