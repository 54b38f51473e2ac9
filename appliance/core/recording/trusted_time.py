"""Whether the clock may be believed by what cannot be undone.

A node without a battery, or with a broken time server, may start weeks ahead for some seconds, and retention by such a
clock would end every session. So a time that is far past the newest trusted one and the time run since is taken only
after it has held for hours: a node that really was away goes on then.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from appliance.core.store.trusted_time import TimeStore
from appliance.core.units import format_duration

log = logging.getLogger(__name__)

PLAUSIBLE = 86400.0
"""Seconds that a node may have been away, or its clock have jumped, without a doubt."""
HOLDS = 6 * 3600.0
"""Seconds of running after which a time that was doubted is believed."""
STORED_EVERY = 300.0


@dataclass(frozen=True)
class _Doubt:
    """A clock that is `offset` from the monotonic one, `since` then (monotonic seconds)."""

    offset: float
    since: float
    jump: float


class TrustedTime:
    """`clock` gives Unix seconds, `monotonic` seconds of running; `store` remembers across restarts."""

    def __init__(self, store: TimeStore, clock: Callable[[], float], monotonic: Callable[[], float]) -> None:
        self._store = store
        self.clock = clock
        self._monotonic = monotonic
        self._began = monotonic()
        self._trusted: tuple[float, float] | None = None
        self._stored = 0.0
        self._doubt: _Doubt | None = None

    async def now(self) -> float | None:
        """The time, or None while the clock is not believed. Raises StoreError."""
        wall, running = self.clock(), self._monotonic()
        if self._trusted is None:
            newest = await asyncio.to_thread(self._store.newest)
            first = wall if newest is None else newest
            # At once: what a clock that is wrong makes others write meanwhile must not be the newest at the next start.
            await asyncio.to_thread(self._store.trust, first)
            self._trusted, self._stored = (first, self._began), first
        at, since = self._trusted
        expected = at + running - since
        if wall > expected + PLAUSIBLE and not self._has_held(wall, running, wall - expected):
            return None
        self._doubt = None
        if wall > expected:
            self._trusted = wall, running
            if wall - self._stored >= STORED_EVERY:
                await asyncio.to_thread(self._store.trust, wall)
                self._stored = wall
        return wall

    def trouble(self) -> str | None:
        """What `status` warns of."""
        if self._doubt is None:
            return None
        left = max(0.0, self._doubt.since + HOLDS - self._monotonic())
        return (
            f"the clock is {format_duration(self._doubt.jump)} past the last time that was trusted: retention ends no "
            f"session until it has held for another {format_duration(left)} (check the node's clock)"
        )

    def _has_held(self, wall: float, running: float, jump: float) -> bool:
        offset = wall - running
        if self._doubt is None or abs(offset - self._doubt.offset) > PLAUSIBLE:
            self._doubt = _Doubt(offset, running, jump)
            log.warning("%s", self.trouble())
        return running - self._doubt.since >= HOLDS
