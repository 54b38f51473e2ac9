"""Watches whether pushes can be accepted and reports each change, so that operators learn of it before a guest does."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
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
"""Seconds between two looks. A changed hook, a lost database or a full disk is noticed after this time at most."""


@dataclass(frozen=True)
class Off:
    """Why every push is refused (`words`), and how an operator can fix it (`mend`). `since` is in Unix seconds."""

    words: str
    mend: str
    since: float

    @property
    def warning(self) -> str:
        """The warning in `status`."""
        return f"{OFF}: {self.words} (to mend it: {self.mend})"


class PushWatch:
    """Makes the checks that each push meets in `guard`, `audit` and `pushes`. `audit_head` is as of the last look.

    `mend` returns what an operator can do about an error.
    """

    def __init__(
        self,
        guard: HookGuard,
        pushes: PushAuthorizer,
        audit: AuditLog,
        publish: Publish,
        alerts: Alerts,
        mend: Callable[[GitmirrorError], str],
    ) -> None:
        self._guard = guard
        self._pushes = pushes
        self._audit = audit
        self._publish = publish
        self._alerts = alerts
        self._mend = mend
        self.off: Off | None = None
        self.audit_head: str | None = None

    async def run(self) -> None:
        """The loop; ends by being cancelled."""
        endurance = Endurance(log, "checking whether they can be accepted")
        while True:
            with endurance.over("pushes"):
                await self.look()
            await asyncio.sleep(LOOK_EVERY)

    async def look(self) -> Off | None:
        """Checks whether pushes are off now. Publishes a change, and passes the condition to the alerts."""
        reason = await self._reason()
        before, now = self.off, time.time()
        if reason is None:
            self.off = None
        else:
            self.off = Off(*reason, since=before.since if before else now)
        if (self.off is None) != (before is None):
            self._report(self.off or before, now)
        self._alerts.consider_pushes(self.off is not None, self._document(self.off, now))
        return self.off

    def gauges(self) -> Iterator[tuple[str, str, float]]:
        """The gauges for /metrics."""
        yield "pushes_enabled", "1 while pushes are accepted.", self.off is None

    def document(self) -> dict[str, Any]:
        """`pushes` of `status --json`."""
        return {
            "accepted": self._pushes.accepted,
            "rejected": self._pushes.rejected,
            "off": self.off.words if self.off else None,
            "mend": self.off.mend if self.off else None,
        }

    async def _reason(self) -> tuple[str, str] | None:
        unreadable: GitmirrorError | None = None
        head: str | None = None
        try:
            # Runs in a thread, because a push may hold the database, and the event loop must not wait for it.
            head = await asyncio.to_thread(self._audit.head)
            await asyncio.to_thread(self._audit.check)
        except GitmirrorError as error:
            unreadable = error
        # Set only now, because two looks may overlap, and nobody may see a half-finished one.
        self.audit_head = head
        try:
            self._guard.check()
            if unreadable is not None:
                raise unreadable
            self._pushes.check()
        except GitmirrorError as error:
            mend = error.mend if isinstance(error, HookGuardBroken) else self._mend(error)
            return error.message.removeprefix(f"{OFF}: "), mend
        return None

    def _report(self, about: Off | None, now: float) -> None:
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
        """The alert, with the keys that every alert has. The keys about a repository are null."""
        return {
            "event": PUSHES_OFF if off else PUSHES_ON,
            "at": rfc3339(now),
            "repo": None,
            "url": None,
            "state": "off" if off else "on",
            "error": None,
            "words": off.warning if off else "pushes are accepted again",
            "hint": off.mend if off else None,
            "lag": None,
            "failures": 0,
            "since": rfc3339(off.since if off else now),
        }
