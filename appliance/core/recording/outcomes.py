"""The outcome of a push for each ref: from receive-pack's report, or from the reflog of the ref (decision 002)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from types import MappingProxyType

from appliance.core.git.command import GitError
from appliance.core.git.mirror import Mirror
from appliance.core.git.reflog import read_moves, was_moved
from appliance.core.models import PushDecision
from appliance.core.recording.turns import TURNS
from appliance.core.store.audit import AuditLog, OpenAttempt
from appliance.core.text import escape_ascii


class Outcomes:
    """Finds outcomes in the mirrors of `mirror_of`, and in the later pushes in `audit`."""

    def __init__(self, audit: AuditLog, mirror_of: Callable[[str], Mirror]) -> None:
        self._audit = audit
        self._mirror_of = mirror_of

    async def of_push(
        self,
        decision: PushDecision,
        report: Mapping[str, str | None],
        excess: str | None,
        withdrawn: Mapping[str, str] = MappingProxyType({}),
    ) -> list[tuple[int, str, str | None]]:
        """(attempt, `applied` or `failed`, reason) per ref of a push whose receive-pack has ended. Raises GitError.

        An `ok` in the report is true with every git. In all other cases the reflog decides, because receive-pack may
        have been killed in between, or have given up a batch of refs of which some had moved. Those that were
        `withdrawn` have failed, for the reason given there.
        """
        outcomes: list[tuple[int, str, str | None]] = []
        for attempt, command in zip(decision.attempts, decision.commands, strict=True):
            if command.ref in withdrawn:
                outcomes.append((attempt, "failed", escape_ascii(withdrawn[command.ref])))
                continue
            reason = report.get(
                command.ref, "the guest disconnected before the push was complete, or receive-pack was ended"
            )
            if reason is not None:
                opened = OpenAttempt(attempt, decision.push, decision.repo.name, command.ref, command.old, command.new)
                if await self._moved(opened):
                    reason = None
                elif excess:
                    reason = f"{excess}: {reason}"
            outcomes.append((attempt, "failed" if reason else "applied", escape_ascii(reason) if reason else None))
        return outcomes

    async def of_open(self, attempt: OpenAttempt) -> tuple[bool, str]:
        """Returns whether an attempt that an earlier `serve` left open was applied, and the reason for the verdict.

        Raises GitError if the mirror cannot be read, because the outcome is never guessed.
        """
        if await self._moved(attempt):
            return True, "settled at start: the ref was moved to this commit"
        return False, "settled at start: serve was ended before the ref moved"

    async def _moved(self, attempt: OpenAttempt) -> bool:
        mirror, turn = self._mirror_of(attempt.repo), f"{TURNS}{attempt.id}"
        try:
            if attempt.new is None or not mirror.is_there():
                return False
            refs = await mirror.local_refs(attempt.ref, turn)
            # Read after the ref, so that the log contains a push that moves the ref in between.
            moves = await asyncio.to_thread(read_moves, mirror.path, attempt.ref)
        except OSError as error:
            raise GitError(f"the log of {attempt.ref} in {attempt.repo} cannot be read: {error}") from error
        moved = was_moved(moves, attempt.push, attempt.new, refs.get(attempt.ref))
        if moved is not None:
            return moved
        # The turn's ref is created before the session's ref moves. If it is missing, another push moved the session
        # here.
        if turn not in refs:
            return False
        return refs.get(attempt.ref) == attempt.new or await asyncio.to_thread(self._audit.led_on, attempt)
