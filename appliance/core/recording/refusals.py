"""Logs refused pushes: the first ones of a sender as rows of their own, and the rest of a minute in one row."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from appliance.core.errors import GitmirrorError
from appliance.core.store.audit import Attempt, AuditLog

log = logging.getLogger(__name__)

ROLL_UP_AFTER = 20
"""Refused refs from one sender within ROLL_UP_WINDOW that get a row each; the rest are counted in one row."""
ROLL_UP_WINDOW = 60.0
"""Seconds."""
LOGGED_REFS = 16
"""The most refs of one refused push that get a row each."""


@dataclass
class _RollUp:
    since: float
    logged: int = 0
    unlogged: int = 0
    last: Attempt | None = None


class Refusals:
    """Writes to `audit`. A sender is a known guest or an address. `clock` is monotonic, in seconds."""

    def __init__(self, audit: AuditLog, clock: Callable[[], float]) -> None:
        self._audit = audit
        self._clock = clock
        self._of: dict[str, _RollUp] = {}

    async def record(self, attempts: Sequence[Attempt], sender: str, total: int) -> list[int]:
        """Logs a refused push of `total` refs, of which `attempts` has the first; returns their ids."""
        seen = self._of.setdefault(sender, _RollUp(since=self._clock()))
        if self._clock() - seen.since > ROLL_UP_WINDOW:
            await self._close(sender)
            seen = self._of.setdefault(sender, _RollUp(since=self._clock()))
        rows = attempts[: max(0, min(LOGGED_REFS, ROLL_UP_AFTER - seen.logged))]
        seen.logged += len(rows)
        seen.unlogged += total - len(rows)
        seen.last = attempts[-1] if attempts else seen.last
        return await asyncio.to_thread(self._audit.record_attempts, rows) if rows else []

    async def tidy(self) -> None:
        """Called periodically: logs what was counted in windows that are over."""
        now = self._clock()
        for sender, seen in list(self._of.items()):
            if now - seen.since > ROLL_UP_WINDOW:
                await self._close(sender)

    async def close(self) -> None:
        """Logs everything that was counted."""
        for sender in list(self._of):
            await self._close(sender)

    async def _close(self, sender: str) -> None:
        seen = self._of.pop(sender, None)
        if seen is None or not seen.unlogged or seen.last is None:
            return
        who = "address" if seen.last.guest is None else "guest"
        summary = f"{seen.unlogged} more refused refs from this {who}, the last: {seen.last.reason}"
        try:
            row = replace(seen.last, verdict="rejected", reason=summary)
            await asyncio.to_thread(self._audit.record_attempts, [row])
        except GitmirrorError as error:
            log.error("%s, and the audit log cannot be written: %s", summary, error)
