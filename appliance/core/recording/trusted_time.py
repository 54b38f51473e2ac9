"""Decides whether the clock can be trusted for actions that cannot be undone.

The clock of a node without a clock battery, or with a broken time server, may be weeks ahead for some seconds after the
start. Retention by such a clock would end every session. So a time that is far ahead of the expected one (the newest
trusted time plus the running time since) is trusted only after it has held for hours. So a node that really was off for
a long time also continues after these hours.
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
"""Seconds that a trusted clock may be ahead of the expected time, for example because the node was off."""
HOLDS = 6 * 3600.0
"""Seconds of running after which a doubted clock is trusted."""
STORED_EVERY = 300.0
"""Seconds."""


@dataclass(frozen=True)
class _Doubt:
    """A doubted clock: `offset` from the monotonic one, `since` when (monotonic), and its `jump`; all in seconds."""

    offset: float
    since: float
    jump: float


class TrustedTime:
    """`clock` gives Unix seconds, `monotonic` seconds of running. `store` keeps the trusted time across restarts.

    `others` gives the time of the fleet's servers, None if nobody tells. A clock that is far from it is not trusted.
    """

    def __init__(
        self,
        store: TimeStore,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
        others: Callable[[], float | None] = lambda: None,
    ) -> None:
        self._store = store
        self.clock = clock
        self._monotonic = monotonic
        self._others = others
        self._apart: float | None = None
        self._began = monotonic()
        self._trusted: tuple[float, float] | None = None
        self._stored = 0.0
        self._doubt: _Doubt | None = None

    async def now(self) -> float | None:
        """The time, or None while the clock is not trusted. Raises StoreError."""
        wall, running = self.clock(), self._monotonic()
        if self._is_apart(wall):
            return None
        if self._trusted is None:
            newest = await asyncio.to_thread(self._store.newest)
            first = wall if newest is None else newest
            # Stored at once, so that no time that others write by a wrong clock is the newest one at the next start.
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
        """The warning for `status`, or None."""
        if self._apart is not None:
            side = "ahead of" if self._apart > 0 else "behind"
            return (
                f"the clock is {format_duration(abs(self._apart))} {side} that of the "
                "fleet's NATS servers: retention ends no session until they agree (check the clocks of both)"
            )
        if self._doubt is None:
            return None
        remaining = max(0.0, self._doubt.since + HOLDS - self._monotonic())
        return (
            f"the clock is {format_duration(self._doubt.jump)} ahead of the last trusted time: retention ends no "
            f"session until it has held for another {format_duration(remaining)} (check the node's clock)"
        )

    def _is_apart(self, wall: float) -> bool:
        others = self._others()
        was_apart, self._apart = self._apart is not None, None
        if others is not None and abs(wall - others) > PLAUSIBLE:
            self._apart = wall - others
            if not was_apart:
                log.warning("%s", self.trouble())
        return self._apart is not None

    def _has_held(self, wall: float, running: float, jump: float) -> bool:
        offset = wall - running
        if self._doubt is None or abs(offset - self._doubt.offset) > PLAUSIBLE:
            self._doubt = _Doubt(offset, running, jump)
            log.warning("%s", self.trouble())
        return running - self._doubt.since >= HOLDS
