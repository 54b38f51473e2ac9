"""What happens in a `serve`, as it happens: one stream of JSON documents for whoever watches."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from appliance.core.events.facts import Document, Event, EventsLost

MOST_WAITING = 10_000
"""Events that wait for one watcher who does not take them; past it the oldest are lost, and it is told how many."""


class Subscription:
    """Takes events from the moment it was made: all of them, or those of some `names`."""

    def __init__(self, names: frozenset[str] | None = None) -> None:
        self._names = names
        self._waiting: deque[Document] = deque()
        self._lost = 0
        self._wake = asyncio.Event()

    def put(self, document: Document) -> None:
        """One more event; never waits."""
        if self._names is not None and document["event"] not in self._names:
            return
        if len(self._waiting) >= MOST_WAITING:
            self._waiting.popleft()
            self._lost += 1
        self._waiting.append(document)
        self._wake.set()

    async def take(self) -> list[Document]:
        """Waits until there is something, and takes all of it, oldest first; a `lost` with a `count` may lead."""
        await self._wake.wait()
        self._wake.clear()
        batch, lost = list(self._waiting), self._lost
        self._waiting.clear()
        self._lost = 0
        return [EventsLost(count=lost).document(), *batch] if lost else batch


class EventStream:
    """Hands each event to every watcher. Publishing costs next to nothing while nobody watches."""

    def __init__(self) -> None:
        self._watchers: set[Subscription] = set()

    def publish(self, event: Event) -> None:
        """Hands the event's document to every watcher. For nobody, none is made."""
        if not self._watchers:
            return
        document = event.document()
        for watcher in self._watchers:
            watcher.put(document)

    @contextmanager
    def watching(self, names: frozenset[str] | None = None) -> Iterator[Subscription]:
        """A watcher, of all events or of some `names`, for as long as the block lasts."""
        watcher = Subscription(names)
        self._watchers.add(watcher)
        try:
            yield watcher
        finally:
            self._watchers.discard(watcher)
