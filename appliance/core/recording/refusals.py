"""Logs the attempts of refused pushes: each of the first ones of a sender, and how many followed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from appliance.core.errors import GitmirrorError
from appliance.core.store.audit import Attempt, AuditLog

log = logging.getLogger(__name__)

ROLL_UP_AFTER = 20
"""Refused refs from one address within ROLL_UP_WINDOW that get a row each; the rest are counted in one row."""
ROLL_UP_WINDOW = 60.0
"""Seconds."""
LOGGED_REFS = 16
"""The most refs of one refused push that get a row each."""


@dataclass
class _Refused:
    since: float
    logged: int = 0
    unlogged: int = 0
    last: Attempt | None = None


class RefusalLog:
    """What each sender, a known guest or an address, was refused lately. Writes to `audit`."""

    def __init__(self, audit: AuditLog) -> None:
        self._audit = audit
        self._senders: dict[str, _Refused] = {}

    async def record(self, attempts: Sequence[Attempt], sender: str, total: int) -> list[int]:
        """Logs some of the `attempts` of a refused push of `total` refs, and counts the rest; returns their ids.

        Raises StoreError.
        """
        seen = self._senders.setdefault(sender, _Refused(since=time.monotonic()))
        if time.monotonic() - seen.since > ROLL_UP_WINDOW:
            await self._close(sender)
            seen = self._senders.setdefault(sender, _Refused(since=time.monotonic()))
        rows = attempts[: max(0, min(LOGGED_REFS, ROLL_UP_AFTER - seen.logged))]
        seen.logged += len(rows)
        seen.unlogged += total - len(rows)
        seen.last = attempts[-1] if attempts else seen.last
        return await asyncio.to_thread(self._audit.record_attempts, rows) if rows else []

    async def tidy(self) -> None:
        """Called periodically: logs how many followed, of senders whose window is over."""
        now = time.monotonic()
        for sender, refused in list(self._senders.items()):
            if now - refused.since > ROLL_UP_WINDOW:
                await self._close(sender)

    async def close(self) -> None:
        """Logs how many followed, of every sender."""
        for sender in list(self._senders):
            await self._close(sender)

    async def _close(self, sender: str) -> None:
        refused = self._senders.pop(sender, None)
        if refused is None or not refused.unlogged or refused.last is None:
            return
        last, who = refused.last, "address" if refused.last.guest is None else "guest"
        summary = f"{refused.unlogged} more refused refs from this {who}, the last: {last.reason}"
        row = replace(last, verdict="rejected", reason=summary)
        try:
            await asyncio.to_thread(self._audit.record_attempts, [row])
        except GitmirrorError as error:
            log.error("%s, and the audit log cannot be written: %s", summary, error)
