"""Gives turns for work that costs an upstream or this node: at a bounded rate, a few at once, fairly between peers."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass

MINUTE = 60.0
LOOK_EVERY = 0.1
"""The most seconds between two attempts to give a turn, while a peer waits for one."""


@dataclass(frozen=True)
class TurnLimits:
    """Limits of turns: `per_minute` begin in a minute, after a burst of `burst`.

    At most `at_once` run at the same time. A turn that takes longer than `holds` seconds, because its upstream hangs or
    the repository is large, no longer counts towards `at_once`, but at most `most_running` run in all. One peer has at
    most half of `most_running`.
    """

    per_minute: float
    burst: int
    at_once: Callable[[], int]
    holds: float
    most_running: int


@dataclass(frozen=True, eq=False)
class _Turn:
    peer: str
    since: float


@dataclass(frozen=True, eq=False)
class _Waiter:
    peers: Collection[str]
    future: asyncio.Future[_Turn]


class FairTurns:
    """Gives turns. The next one goes to the waiting peer that began the fewest within the last minute."""

    def __init__(self, limits: TurnLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._queue: list[_Waiter] = []
        self._running: set[_Turn] = set()
        self._begun: deque[_Turn] = deque()
        self._tokens = float(limits.burst)
        self._filled_at = clock()
        self._timer: asyncio.TimerHandle | None = None

    @contextlib.asynccontextmanager
    async def turn(self, peers: Collection[str]) -> AsyncIterator[None]:
        """Waits for a turn of any of `peers` and holds it until the block ends. `peers` may grow in the meantime.

        So if a greedy peer was the first to want something, others that want it too need not wait for that peer's turn.
        """
        future: asyncio.Future[_Turn] = asyncio.get_running_loop().create_future()
        self._queue.append(_Waiter(peers, future))
        self._give()
        try:
            turn = await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                # The turn was given at the same moment.
                self._running.discard(future.result())
            self._give()
            raise
        try:
            yield
        finally:
            self._running.discard(turn)
            self._give()

    def _give(self) -> None:
        """Gives all turns that can be given now. While somebody waits, looks again soon, because time passes."""
        now, limits = self._clock(), self._limits
        self._tokens = min(limits.burst, self._tokens + (now - self._filled_at) * limits.per_minute / MINUTE)
        self._filled_at = now
        while self._begun and now - self._begun[0].since > MINUTE:
            self._begun.popleft()
        holding = sum(now - turn.since < limits.holds for turn in self._running)
        while self._tokens >= 1 and holding < limits.at_once() and len(self._running) < limits.most_running:
            found = self._next()
            if found is None:
                break
            peer, waiting = found
            turn = _Turn(peer, now)
            self._running.add(turn)
            self._begun.append(turn)
            self._tokens -= 1
            holding += 1
            waiting.set_result(turn)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._queue:
            self._timer = asyncio.get_running_loop().call_later(LOOK_EVERY, self._give)

    def _next(self) -> tuple[str, asyncio.Future[_Turn]] | None:
        """Takes the waiter that is next and the peer for which its turn counts; None if no waiter may have a turn."""
        self._queue = [waiter for waiter in self._queue if not waiter.future.done()]
        running, begun = (Counter(turn.peer for turn in turns) for turns in (self._running, self._begun))
        share = max(1, self._limits.most_running // 2)
        found: tuple[str, _Waiter] | None = None
        for waiter in self._queue:
            for peer in waiter.peers:
                # Among peers that began equally few, the longest waiter is first in the queue.
                if running[peer] < share and (found is None or begun[peer] < begun[found[0]]):
                    found = (peer, waiter)
        if found is None:
            return None
        self._queue.remove(found[1])
        return found[0], found[1].future
