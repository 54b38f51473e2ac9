"""Decides on every push, logs the attempt, and later its outcome."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from appliance.core.config.fields import ANYONE
from appliance.core.config.settings import RecordingConfig
from appliance.core.errors import Forbidden, GitmirrorError
from appliance.core.events.facts import DamageSuspected, Publish, PushRuled
from appliance.core.git.failures import speaks_of_damage
from appliance.core.git.mirror import Mirror
from appliance.core.layout import Layout
from appliance.core.models import (
    NOTHING_WITHDRAWN,
    ZERO_OID,
    Caller,
    Confirmation,
    Guest,
    PushDecision,
    PushFault,
    RefCommand,
    Repo,
    Turn,
)
from appliance.core.process.endurance import Endurance
from appliance.core.recording.advice import NO_LONGER_KNOWN, ONLY_KNOWN, advice
from appliance.core.recording.commands import attempt_of, turn_recorded, unbooked
from appliance.core.recording.durability import Confirmations, Durability
from appliance.core.recording.found import FoundTurns
from appliance.core.recording.hook_guard import OFF, HookGuard, push_environment
from appliance.core.recording.notes import notes_of
from appliance.core.recording.outcomes import Outcomes
from appliance.core.recording.policy import EVERY_SESSION, MOST_REFS, may_write, review, session_of
from appliance.core.recording.quota import Quota
from appliance.core.recording.refusals import Refusals
from appliance.core.recording.turns import TurnRecorder, write_turn_file
from appliance.core.store.audit import AuditLog, OpenAttempt
from appliance.core.store.write_behind import once_stored
from appliance.core.text import escape_ascii

log = logging.getLogger(__name__)


class PushAuthorizer:
    """Decides on pushes by guard, policy and quota, and keeps the audit log correct. `mirror_of` finds a mirror."""

    def __init__(
        self,
        layout: Layout,
        guard: HookGuard,
        audit: AuditLog,
        recorder: TurnRecorder,
        found: FoundTurns,
        quota: Quota,
        settings: Callable[[], RecordingConfig],
        mirror_of: Callable[[str], Mirror],
        publish: Publish,
        is_known: Callable[[Guest], bool],
        durability: Durability,
    ) -> None:
        self._layout = layout
        self._guard = guard
        self._audit = audit
        self._recorder = recorder
        self._found = found
        self._quota = quota
        self._settings = settings
        self._mirror_of = mirror_of
        self._outcomes = Outcomes(audit, mirror_of)
        self._confirmations = Confirmations(durability, recorder, mirror_of)
        self._publish = publish
        self._is_known = is_known
        self._refusals = Refusals(audit, time.monotonic)
        self._unsettled: list[tuple[PushDecision, Mapping[str, str | None], int, Confirmation]] = []
        self._open: list[OpenAttempt] = []
        self.is_settled = False
        """Whether the open attempts of an earlier `serve` are examined. Until then, a new one could pass for one."""
        self._endurance = Endurance(log, "settling")
        self.accepted = 0
        self.rejected = 0

    def open(self) -> str:
        """The id of a new push."""
        return f"{time.time_ns():x}-{secrets.token_hex(4)}"

    def environment(self, push: str, guest: Guest | None) -> dict[str, str]:
        """The environment variables for receive-pack and the hooks of a push by a guest, which may be unknown."""
        return push_environment(push, self._turn_file(push), self.sessions_of(guest))

    def sessions_of(self, guest: Guest | None) -> tuple[str, ...]:
        """The patterns of the sessions that a guest may write."""
        if guest is not None:
            # A push or an attachment may have waited since the guest was looked up.
            return guest.sessions if self._is_known(guest) else ()
        return EVERY_SESSION if self._settings().writers == ANYONE else ()

    def check(self) -> None:
        """Raises GitmirrorError until the attempts that an earlier `serve` left open are examined."""
        if not self.is_settled:
            raise GitmirrorError(
                f"{OFF}: attempts that an earlier serve left open are not settled yet",
                hint="wait: serve tries again by itself; if this goes on, read its log",
            )

    async def require_writable(self, repo: Repo, session: str, caller: Caller) -> None:
        """Raises Forbidden unless `caller` may push to a session, and GitmirrorError if pushes are off."""
        sessions = self.sessions_of(caller.guest)
        if caller.guest is None and not sessions:
            raise Forbidden(ONLY_KNOWN)
        if session_of(f"refs/agents/{session}") is None or not may_write(session, sessions):
            raise Forbidden(f"this guest may not write the session {escape_ascii(session)}")
        self._guard.check()
        self.check()
        await self._found.require_whole_log(repo.name)

    def _turn_file(self, push: str) -> Path:
        return self._layout.pushes / f"{push}.turns"

    async def rule(
        self,
        push: str,
        repo: Repo,
        caller: Caller,
        commands: Sequence[RefCommand],
        total: int,
        count_objects: Callable[[], Awaitable[int]],
        fault: str | None = None,
        options: Sequence[bytes] = (),
    ) -> PushDecision:
        """Decides on a push, and logs the attempt before anything of the push is let through.

        `total` is the number of refs that the guest sent; `commands` may be only the first of them. `fault` says why
        the request is malformed. `count_objects` reads the number of objects from the pack's header, or raises
        PushFault; it is called only if nothing else refuses the push. `options` are its push options, which may have
        notes. Never raises: a push that cannot be logged is refused.
        """
        notes: Mapping[str, str] = {}
        try:
            notes = notes_of(options)
        except PushFault as fault_of_notes:
            fault = fault or str(fault_of_notes)
        client, sessions = caller.client, self.sessions_of(caller.guest)
        refused = review([(command.old, command.new, command.ref) for command in commands], sessions)
        if caller.guest is None and not sessions:
            refused = {command.ref: ONLY_KNOWN for command in commands}
        if caller.guest is not None and not self._is_known(caller.guest):
            refused = {command.ref: NO_LONGER_KNOWN for command in commands}
        if total > len(commands):
            reason = f"{total} refs in one push, at most {MOST_REFS} are allowed"
            refused = {command.ref: reason for command in commands}
        if fault:
            refused = {command.ref: fault for command in commands}
        off: GitmirrorError | None = None
        if not refused:
            try:
                self._guard.check()
                self.check()
                await self._found.require_whole_log(repo.name)
                if limit := await self._over_limit(repo, commands, await count_objects()):
                    refused = {command.ref: limit for command in commands}
            except PushFault as fault_of_pack:
                refused = {command.ref: str(fault_of_pack) for command in commands}
            except GitmirrorError as error:
                off = error
                refused = {command.ref: error.message for command in commands}
        attempts = [attempt_of(push, repo, caller, command, refused) for command in commands]
        try:
            if refused:
                sender = client if caller.guest is None else f"guest {caller.guest.name}"
                ids = await self._refusals.record(attempts, sender, total)
            else:
                ids = await asyncio.to_thread(self._audit.record_attempts, attempts, notes)
        except GitmirrorError as error:
            log.error("push to %s by %s refused, the audit log cannot be written: %s", repo.name, client, error)
            off = GitmirrorError(
                f"{OFF}: the audit log cannot be written",
                hint="the operator must fix it (see `doctor`)",
            )
            refused, ids = {command.ref: off.message for command in commands}, []
        if refused:
            self.rejected += 1
            ref, reason = next(iter(refused.items()))
            log.info("push to %s by %s refused: %s: %s", repo.name, client, escape_ascii(ref), reason)
        else:
            self.accepted += 1
            self._write_turn_file(push, commands, ids)
        told = (off.message, off.hint) if off else advice(repo, refused, sessions, caller.guest_name)
        decision = PushDecision(push, repo, client, tuple(commands), refused, told, tuple(ids), caller.guest_name)
        self._publish(PushRuled(repo=repo, decision=decision))
        return decision

    async def _over_limit(self, repo: Repo, commands: Sequence[RefCommand], objects: int) -> str | None:
        sessions = [session for command in commands if (session := session_of(command.ref))]
        count = self._recorder.store.turn_count
        counts = {session: await asyncio.to_thread(count, repo.name, session) for session in sessions}
        return self._quota.refuse(repo.name, counts, objects)

    def _write_turn_file(self, push: str, commands: Sequence[RefCommand], ids: Sequence[int]) -> None:
        """Writes the turn file. Without it the update hook moves no ref, so on a full disk git refuses the push."""
        try:
            write_turn_file(self._turn_file(push), dict(zip((command.ref for command in commands), ids, strict=True)))
        except OSError as error:
            log.error("cannot write the turn file of push %s: %s", push, error)

    @property
    def waits(self) -> bool:
        """Whether `confirm` waits for anything."""
        return self._confirmations.wait

    async def confirm(self, decision: PushDecision, report: Mapping[str, str | None], size: int) -> Confirmation:
        """Waits until what receive-pack applied is stored wherever it has to be before the guest is told.

        Call it without the lock of the mirror, before `conclude`, which withdraws what is not stored. Never raises.
        """
        return await self._confirmations.of_push(decision, report, size)

    async def conclude(
        self,
        decision: PushDecision,
        report: Mapping[str, str | None],
        size: int,
        confirmation: Confirmation = NOTHING_WITHDRAWN,
    ) -> None:
        """Logs the real outcome of an accepted push, after receive-pack has ended.

        `report` is receive-pack's report on each ref, as far as it was received: None for success, otherwise the
        reason. `size` is the bytes that the guest sent. Never raises: an outcome that cannot be logged now is retried.
        """
        withdrawn = confirmation.refused
        await self._confirmations.withdraw(decision, withdrawn)
        if words := speaks_of_damage("\n".join(reason for reason in report.values() if reason)):
            self._publish(DamageSuspected(mirror=decision.repo.name, words=words))
        try:
            outcomes = await self._outcomes.of_push(decision, report, self._quota.too_large(size), withdrawn)
        except GitmirrorError as error:
            log.error("the outcome of push %s is not known yet: %s", decision.push, error)
            self._unsettled.append((decision, report, size, confirmation))
            # Refs may have moved, and the guest gets the report next. From then on no guest may be shown the old refs.
            self._publish_turns(decision, decision.commands)
            return
        done = {attempt for attempt, outcome, _ in outcomes if outcome == "applied"}
        pairs = zip(decision.attempts, decision.commands, strict=True)
        applied = [command for attempt, command in pairs if attempt in done]
        with once_stored(partial(self._publish_turns, decision, applied)):
            try:
                known = await asyncio.to_thread(self._audit.record_outcomes, outcomes, decision.push)
            except GitmirrorError as error:
                log.error("cannot log the outcome of push %s yet: %s", decision.push, error)
                self._unsettled.append((decision, report, size, confirmation))
                return
            with self._endurance.over(f"the turns of push {decision.push}"):
                self._turn_file(decision.push).unlink(missing_ok=True)
            try:
                await self._record_turns(decision, done, known, size, confirmation.turns)
            except GitmirrorError as error:
                log.error("the turns of push %s will be recorded later: %s", decision.push, error.message)

    def _publish_turns(self, decision: PushDecision, applied: Iterable[RefCommand]) -> None:
        for command in applied:
            self._publish(turn_recorded(decision, command))

    async def _record_turns(
        self, decision: PushDecision, done: set[int], known: set[int], size: int, turns: Mapping[int, Turn]
    ) -> None:
        """Records applied attempts as turns, and removes the turn refs of the others. Raises GitmirrorError.

        The log has those in `known`. Another applied one, of which an older log was put back, is found by its turn ref.
        A session that was archived and is written again leaves the archive.
        """
        pairs = list(zip(decision.attempts, decision.commands, strict=True))
        applied = [(attempt, command) for attempt, command in pairs if attempt in done & known]
        if lost := sorted(set(decision.attempts) - known):
            log.error("the log does not have the attempts %s of push %s: is it an older copy?", lost, decision.push)
        share = size // max(1, len(applied))
        self._quota.used_bytes += share * len(applied)
        for attempt, command in applied:
            if attempt in turns:
                await self._recorder.record(turns[attempt])
            else:
                await self._recorder.book(unbooked(decision, attempt, command), share)
        created = [session_of(command.ref) or "" for _, command in applied if command.old == ZERO_OID]
        if created:
            await self._recorder.back_from_archive(decision.repo.name, created)
        failed = {attempt: command.new for attempt, command in pairs if attempt not in done}
        if failed:
            await self._recorder.drop_turn_refs(decision.repo.name, failed)

    async def settle(self) -> int:
        """Settles the attempts that an earlier `serve` left open; returns their number. Raises StoreError.

        The refs and their reflogs give the outcomes. The newest attempt comes first, because a later push that started
        from an attempt's commit proves that the attempt was applied.
        """
        attempts = await asyncio.to_thread(self._audit.open_attempts)
        self._open = await self._settle_each(attempts)
        for turn_file in self._layout.pushes.glob("*"):
            with self._endurance.over(str(turn_file)):
                turn_file.unlink(missing_ok=True)
        await self._found.look_everywhere()
        await self._recorder.catch_up()
        self._quota.used_bytes = await asyncio.to_thread(self._recorder.store.recorded_bytes)
        self.is_settled = True
        return len(attempts) - len(self._open)

    async def _settle_each(self, attempts: Sequence[OpenAttempt]) -> list[OpenAttempt]:
        """Returns, in order, those whose mirror cannot be read now, because their outcome is never guessed."""
        unsettled: list[OpenAttempt] = []
        for attempt in reversed(attempts):
            unsettled.insert(0, attempt)
            with self._endurance.over(f"attempt {attempt.id} in {attempt.repo}"):
                await self._settle(attempt)
                unsettled.remove(attempt)
        return unsettled

    async def _settle(self, attempt: OpenAttempt) -> None:
        applied, how = await self._outcomes.of_open(attempt)
        if not applied and self._mirror_of(attempt.repo).is_there():
            await self._recorder.drop_turn_refs(attempt.repo, {attempt.id: attempt.new or ""})
        outcome = (attempt.id, "applied" if applied else "failed", how)
        await asyncio.to_thread(self._audit.record_outcomes, [outcome])

    async def tidy(self) -> None:
        """Called periodically: closes old roll-ups, and retries outcomes that could not be logged or settled."""
        await self._refusals.tidy()
        waiting, self._unsettled = self._unsettled, []
        for each in waiting:
            await self.conclude(*each)
        if self._open:
            self._open = await self._settle_each(self._open)
            if not self._open:
                await self._recorder.catch_up()

    async def close(self) -> None:
        """Logs the refusals that the roll-ups still hold."""
        await self._refusals.close()
