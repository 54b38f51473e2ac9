"""Watches whether pushes can be let in, and tells when that changes: pushes that are off must not wait for a push."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from appliance.core.errors import GitmirrorError
from appliance.core.events.facts import PUSHES_OFF, PUSHES_ON, Publish, PushesSwitched
from appliance.core.observability.alerts import Alerts
from appliance.core.process.endurance import Endurance
from appliance.core.recording.hook_guard import OFF, HookGuard, HookGuardBroken
from appliance.core.recording.push_authorizer import PushAuthorizer
from appliance.core.store.audit import AuditLog
from appliance.core.units import rfc3339

log = logging.getLogger(__name__)

LOOK_EVERY = 2.0
"""Seconds until it is noticed that a hook was touched, that the database is gone, or that the disk is full."""


@dataclass(frozen=True)
class Off:
    """Why every push is refused, in words, and what an operator does about it. `since` is in Unix seconds."""

    words: str
    mend: str
    since: float

    @property
    def warning(self) -> str:
        """For `status`."""
        return f"{OFF}: {self.words} (to mend it: {self.mend})"


class PushWatch:
    """Asks `guard`, `audit` and `desk`, which is what a push would meet; `audit_head` is as of the last look."""

    def __init__(
        self, guard: HookGuard, desk: PushAuthorizer, audit: AuditLog, publish: Publish, alerts: Alerts
    ) -> None:
        self._guard = guard
        self._desk = desk
        self._audit = audit
        self._publish = publish
        self._alerts = alerts
        self.off: Off | None = None
        self.audit_head: str | None = None

    async def run(self) -> None:
        """The loop; ends by being cancelled."""
        endurance = Endurance(log, "looking whether pushes can be let in")
        while True:
            with endurance.over("pushes"):
                await self.look()
            await asyncio.sleep(LOOK_EVERY)

    async def look(self) -> Off | None:
        """How it is now; tells the feed and the alerts when that is news."""
        found = await self._reason()
        before, now = self.off, time.time()
        if found is None:
            self.off = None
        else:
            self.off = Off(*found, since=before.since if before else now)
        if (self.off is None) != (before is None):
            self._tell(self.off or before, now)
        self._alerts.consider_pushes(self.off is not None, self._document(self.off, now))
        return self.off

    def gauges(self) -> Iterator[tuple[str, str, float]]:
        """What /metrics tells of it."""
        yield "pushes_enabled", "1 while pushes are let in.", self.off is None

    def document(self) -> dict[str, Any]:
        """`pushes` of `status --json`."""
        return {
            "accepted": self._desk.accepted,
            "rejected": self._desk.rejected,
            "off": self.off.words if self.off else None,
            "mend": self.off.mend if self.off else None,
        }

    async def _reason(self) -> tuple[str, str] | None:
        unreadable: GitmirrorError | None = None
        self.audit_head = None
        try:
            # A push may be waiting for the database just now; the loop must not wait with it.
            self.audit_head = await asyncio.to_thread(self._audit.head)
            await asyncio.to_thread(self._audit.check)
        except GitmirrorError as error:
            unreadable = error
        try:
            self._guard.check()
            if unreadable is not None:
                raise unreadable
            self._desk.check()
        except GitmirrorError as error:
            mend = error.mend if isinstance(error, HookGuardBroken) else error.hint
            return error.message.removeprefix(f"{OFF}: "), mend
        return None

    def _tell(self, about: Off | None, now: float) -> None:
        is_off = self.off is not None
        if about is None:
            return
        if is_off:
            log.error("%s", about.warning)
        else:
            log.warning("pushes are on again")
        facts = self._document(about if is_off else None, now)
        words, hint = facts["words"], facts["hint"]
        self._publish(PushesSwitched(at=now, are_off=is_off, words=words, hint=hint, since=about.since))

    @staticmethod
    def _document(off: Off | None, now: float) -> dict[str, Any]:
        """The alert, with the keys that every alert has; those of a repository are null."""
        return {
            "event": PUSHES_OFF if off else PUSHES_ON,
            "at": rfc3339(now),
            "repo": None,
            "url": None,
            "state": "off" if off else "on",
            "error": None,
            "words": off.warning if off else "pushes are let in again",
            "hint": off.mend if off else None,
            "lag": None,
            "failures": 0,
            "since": rfc3339(off.since if off else now),
        }
