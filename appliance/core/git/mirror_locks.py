"""Who may work on a mirror at once: many fetches and pushes, or one repack."""

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

    Sharers (fetch, push) never wait for each other. The exclusive holder (repack, purge) starts only when there is
    none, so that a slow guest's push cannot hold up all others behind a waiting repack.
    """

    def __init__(self) -> None:
        self._locks: dict[str, _MirrorLock] = {}

    @contextlib.asynccontextmanager
    async def shared(self, name: str, *, preempt: bool = False) -> AsyncIterator[None]:
        """For a fetch or a push. With `preempt`, a repack in the way is asked to give up its place."""
        lock = self._locks.setdefault(name, _MirrorLock())
        async with lock.changed:
            if preempt and lock.yield_place is not None:
                lock.yield_place()
            await lock.changed.wait_for(lambda: not lock.exclusive)
            lock.sharers += 1
        try:
            yield
        finally:
            async with lock.changed:
                lock.sharers -= 1
                lock.changed.notify_all()

    @contextlib.asynccontextmanager
    async def exclusive(self, name: str, yield_place: Callable[[], None] | None = None) -> AsyncIterator[None]:
        """For a repack or a purge. `yield_place` is called when a push wants the mirror."""
        lock = self._locks.setdefault(name, _MirrorLock())
        async with lock.changed:
            await lock.changed.wait_for(lambda: not lock.exclusive and lock.sharers == 0)
            lock.exclusive, lock.yield_place = True, yield_place
        try:
            yield
        finally:
            # No await before the release: a second cancellation must not leave the mirror locked for ever.
            lock.exclusive, lock.yield_place = False, None
            async with lock.changed:
                lock.changed.notify_all()
