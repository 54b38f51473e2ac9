"""The latest events of one `serve`, numbered from 1 and bounded in number and in bytes."""

from __future__ import annotations

from collections import Counter

MOST_KEPT = 10_000
"""The most events that are kept for subscribers that are slow or come back."""
MOST_BYTES = 16 * 2**20
"""The most bytes of JSON that are kept. The newest event is kept whatever its size."""

_NOTHING = ("", b"")


class EventRing:
    """Keeps the name and the JSON of each event until newer ones need its place.

    `oldest` and `newest` are the numbers of the events at the ends. In an empty ring, `oldest` is `newest + 1`.
    """

    def __init__(self) -> None:
        self.oldest = 1
        self.newest = 0
        self._events = [_NOTHING] * MOST_KEPT
        """Event `number` is at `number % MOST_KEPT`."""
        self._bytes = 0
        self._dropped: Counter[str] = Counter()

    def append(self, name: str, json: bytes) -> None:
        """Adds an event, and drops the oldest ones if there are too many or they are too large."""
        if self.newest - self.oldest + 1 == MOST_KEPT:
            self._drop_oldest()
        self.newest += 1
        self._events[self.newest % MOST_KEPT] = (name, json)
        self._bytes += len(json)
        while self._bytes > MOST_BYTES and self.oldest < self.newest:
            self._drop_oldest()

    def event(self, number: int) -> tuple[str, bytes]:
        """The name and the JSON of an event that is kept."""
        return self._events[number % MOST_KEPT]

    def dropped(self, names: frozenset[str] | None) -> int:
        """How many events, or how many with one of `names`, are no longer kept."""
        return self.oldest - 1 if names is None else sum(self._dropped[name] for name in names)

    def passed(self, number: int, names: frozenset[str] | None) -> int | None:
        """How many events, or how many with one of `names`, came until event `number`.

        None if that event was dropped and only some names count, because nobody knows any more.
        """
        if names is None:
            return number
        if number < self.oldest - 1:
            return None
        kept = range(self.oldest, number + 1)
        return self.dropped(names) + sum(self.event(each)[0] in names for each in kept)

    def _drop_oldest(self) -> None:
        place = self.oldest % MOST_KEPT
        name, json = self._events[place]
        self._events[place] = _NOTHING
        self._dropped[name] += 1
        self._bytes -= len(json)
        self.oldest += 1
