"""Decides which refresh is next. Two heaps let a pass over a thousand mirrors touch only those that are due."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from itertools import count

from appliance.core.refresh.schedule import Lane

_Later = tuple[float, int, int, Lane, float]
_Ready = tuple[float, int, int]


class RefreshQueue:
    """Holds repository ids, each at most once, until they are due, and then by lane until there is a free slot.

    Times are monotonic seconds. Of the due repositories, the one with the earliest `last` goes first. So after an
    hour's downtime, when everything is overdue, a mirror with a short interval goes before one that can wait.
    """

    def __init__(self) -> None:
        self._later: list[_Later] = []
        self._ready: dict[Lane, list[_Ready]] = {lane: [] for lane in Lane}
        self._tickets: dict[int, int] = {}
        self._numbers = count(1)

    def put(self, repo_id: int, due: float, lane: Lane, last: float) -> None:
        """Queues a repository for `due`, replacing its earlier entry; `last` is its deadline for the ordering."""
        ticket = self._tickets[repo_id] = next(self._numbers)
        heapq.heappush(self._later, (due, ticket, repo_id, lane, last))
        if len(self._later) > 2 * len(self._tickets) + 64:
            self._later = [item for item in self._later if self._tickets.get(item[2]) == item[1]]
            heapq.heapify(self._later)

    def remove(self, repo_id: int) -> None:
        """Removes a repository from the queue."""
        self._tickets.pop(repo_id, None)

    def take(self, lane: Lane, now: float, places: int) -> Iterator[int]:
        """Takes up to `places` due repositories of a lane."""
        self._ripen(now)
        ready = self._ready[lane]
        while ready and places > 0:
            _, ticket, repo_id = heapq.heappop(ready)
            if self._tickets.get(repo_id) == ticket:
                del self._tickets[repo_id]
                places -= 1
                yield repo_id

    @property
    def has_ready(self) -> bool:
        """Whether a due repository is waiting for a free slot."""
        return any(self._tickets.get(item[2]) == item[1] for ready in self._ready.values() for item in ready)

    @property
    def next_due(self) -> float:
        """When the next repository will be due; infinity if nothing is queued."""
        while self._later and self._tickets.get(self._later[0][2]) != self._later[0][1]:
            heapq.heappop(self._later)
        return self._later[0][0] if self._later else math.inf

    def _ripen(self, now: float) -> None:
        while self._later and self._later[0][0] <= now:
            _, ticket, repo_id, lane, last = heapq.heappop(self._later)
            if self._tickets.get(repo_id) == ticket:
                heapq.heappush(self._ready[lane], (last, ticket, repo_id))
