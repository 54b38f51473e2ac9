"""The events of one `serve` as they happen: a stream of JSON documents for any number of subscribers."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from appliance.core.events.facts import Document, Event, EventsLost

MOST_WAITING = 10_000
"""The most events that wait for a slow subscriber. Beyond that the oldest are dropped, and it learns how many."""


class Subscription:
    """Collects events from its creation on: all of them, or those with one of `names`."""

    def __init__(self, names: frozenset[str] | None = None) -> None:
        self._names = names
        self._waiting: deque[Document] = deque()
        self._lost = 0
        self._wake = asyncio.Event()

    def put(self, document: Document) -> None:
        """Adds an event. Never waits."""
        if self._names is not None and document["event"] not in self._names:
            return
        if len(self._waiting) >= MOST_WAITING:
            self._waiting.popleft()
            self._lost += 1
        self._waiting.append(document)
        self._wake.set()

    async def take(self) -> list[Document]:
        """Waits for events and returns all, oldest first. If some were dropped, `lost` with their `count` is first."""
        await self._wake.wait()
        self._wake.clear()
        batch, lost = list(self._waiting), self._lost
        self._waiting.clear()
        self._lost = 0
        return [EventsLost(count=lost).document(), *batch] if lost else batch


class EventStream:
    """Passes each event to every subscription. Publishing costs almost nothing while nobody subscribes."""

    def __init__(self) -> None:
        self._subscriptions: set[Subscription] = set()

    def publish(self, event: Event) -> None:
        """Passes the event's document to every subscription. Without subscriptions, no document is made."""
        if not self._subscriptions:
            return
        document = event.document()
        for subscription in self._subscriptions:
            subscription.put(document)

    @contextmanager
    def watching(self, names: frozenset[str] | None = None) -> Iterator[Subscription]:
        """Subscribes to all events, or to those with one of `names`, until the block ends."""
        subscription = Subscription(names)
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)
