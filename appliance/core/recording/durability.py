"""Where else a turn must be stored before its guest is told, and what happens to one that is not stored there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Protocol

from appliance.core.errors import GitmirrorError
from appliance.core.git.mirror import Mirror
from appliance.core.git.reflog import put_back
from appliance.core.models import Confirmation, PushDecision, RefCommand, Turn
from appliance.core.recording.commands import unbooked
from appliance.core.recording.turns import TurnRecorder

log = logging.getLogger(__name__)


MOST_PASSED = 1000
"""Withdrawn moves that are remembered, because a push that went on from there may be withdrawn, too."""


class Durability(Protocol):
    """What has turns beside this node. Implemented by `fleet`, and wired in by the service."""

    @property
    def waits(self) -> bool:
        """Whether a guest is told of a turn only after it is stored there."""
        ...

    async def store(self, turn: Turn) -> str | None:
        """Stores an applied turn there within a deadline; returns why it is not stored, for the guest, or None."""
        ...

    def booked(self) -> None:
        """Notices that a turn was recorded on this node. Neither waits nor raises."""
        ...


class ThisNodeAlone:
    """Nothing has the turns but this node."""

    waits = False

    async def store(self, turn: Turn) -> str | None:
        """Has nothing to do."""
        return None

    def booked(self) -> None:
        """Has nothing to do."""


class Confirmations:
    """Has applied turns stored by `durability`, and withdraws those that it did not store."""

    def __init__(self, durability: Durability, recorder: TurnRecorder, mirror_of: Callable[[str], Mirror]) -> None:
        self._durability = durability
        self._recorder = recorder
        self._mirror_of = mirror_of
        self._passed: dict[tuple[str, str, str], tuple[RefCommand, str]] = {}
        """Withdrawn moves that could not be put back, because another push had gone on from there, by repository, ref
        and commit. If that push is withdrawn as well, both are put back."""

    @property
    def wait(self) -> bool:
        """Whether there is anything to wait for."""
        return self._durability.waits

    async def of_push(self, decision: PushDecision, report: Mapping[str, str | None], size: int) -> Confirmation:
        """Waits until each ref that receive-pack applied is stored, or is not. Never raises.

        Needs no lock of the mirror: the turn's ref keeps its commit, and a mirror that was removed meanwhile is an
        error, for which the turn is withdrawn.
        """
        pairs = zip(decision.attempts, decision.commands, strict=True)
        applied = [(attempt, command) for attempt, command in pairs if report.get(command.ref, "") is None]
        share = size // max(1, len(applied))
        found = await asyncio.gather(*(self._store(decision, *each, share) for each in applied))
        refused = {ref: reason for ref, reason, _ in found if reason is not None}
        return Confirmation(refused, {turn.id: turn for _, _, turn in found if turn is not None})

    async def _store(
        self, decision: PushDecision, attempt: int, command: RefCommand, size: int
    ) -> tuple[str, str | None, Turn | None]:
        push = unbooked(decision, attempt, command)
        try:
            turn = await self._recorder.describe(push, size)
            return command.ref, await self._durability.store(turn), turn
        except GitmirrorError as error:
            log.error("%s cannot be confirmed: %s", command.ref, error)
            return command.ref, "the mirror could not store it in its fleet; nothing was recorded, push again", None

    async def withdraw(self, decision: PushDecision, refused: Mapping[str, str]) -> None:
        """Puts the refs in `refused` back to what they were before the push, unless a later push moved them on."""
        if not refused:
            return
        name = decision.repo.name
        for command in decision.commands:
            if command.ref in refused:
                log.warning("push to %s withdrawn: %s: %s", name, command.ref, refused[command.ref])
                await self._put_back(name, command, decision.push)

    async def _put_back(self, name: str, command: RefCommand, push: str) -> None:
        mirror = self._mirror_of(name)
        move: tuple[RefCommand, str] | None = (command, push)
        try:
            while move is not None:
                command, push = move
                await put_back(mirror, command, push)
                move = self._passed.pop((name, command.ref, command.old), None)
        except GitmirrorError as error:
            log.warning("%s stays where it is: %s", command.ref, error)
            self._passed[name, command.ref, command.new] = command, push
            while len(self._passed) > MOST_PASSED:
                del self._passed[next(iter(self._passed))]
