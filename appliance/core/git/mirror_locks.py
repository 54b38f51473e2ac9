"""Locks on mirrors: many fetches and pushes may work on one at the same time, or one repack."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field


@dataclass
class _MirrorLock:
    sharers: int = 0
    exclusive: bool = False
    yield_place: Callable[[], None] | None = None
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)


class MirrorLocks:
    """One lock for each mirror, by repository name.

    Sharers (fetch, push) never wait for each other. An exclusive holder (repack, purge) starts only when there are no
    sharers, and does not keep new ones out while it waits. Otherwise one slow push would hold up all others behind a
    waiting repack.
    """

    def __init__(self) -> None:
        self._locks: dict[str, _MirrorLock] = {}

    @contextlib.asynccontextmanager
    async def shared(self, name: str, *, preempt: bool = False) -> AsyncIterator[None]:
        """Holds the lock for a fetch or a push. With `preempt`, a repack that holds the lock is asked to give it up."""
        lock = self._locks.setdefault(name, _MirrorLock())
        async with lock.changed:
            if preempt and lock.yield_place is not None:
                lock.yield_place()
            await lock.changed.wait_for(lambda: not lock.exclusive)
            lock.sharers += 1
        try:
            yield
        finally:
            # No await before the release, because a second cancellation would keep repacks out forever.
            lock.sharers -= 1
            async with lock.changed:
                lock.changed.notify_all()

    @contextlib.asynccontextmanager
    async def exclusive(self, name: str, yield_place: Callable[[], None] | None = None) -> AsyncIterator[None]:
        """Holds the lock alone, for a repack or a purge. `yield_place` is called when a push needs the mirror."""
        lock = self._locks.setdefault(name, _MirrorLock())
        async with lock.changed:
            await lock.changed.wait_for(lambda: not lock.exclusive and lock.sharers == 0)
            lock.exclusive, lock.yield_place = True, yield_place
        try:
            yield
        finally:
            # No await before the release, because a second cancellation would leave the mirror locked forever.
            lock.exclusive, lock.yield_place = False, None
            async with lock.changed:
                lock.changed.notify_all()
