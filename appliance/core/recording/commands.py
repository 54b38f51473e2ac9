"""What one ref command of a push becomes: an attempt in the log, a turn, and an event."""

from __future__ import annotations

import time
from collections.abc import Mapping

from appliance.core.events.facts import TurnRecorded
from appliance.core.models import ZERO_OID, Caller, PushDecision, RefChange, RefCommand, Repo
from appliance.core.recording.policy import session_of
from appliance.core.store.audit import Attempt
from appliance.core.store.sessions import Unbooked
from appliance.core.text import escape_ascii
from appliance.core.units import rfc3339


def attempt_of(push: str, repo: Repo, caller: Caller, command: RefCommand, refused: Mapping[str, str]) -> Attempt:
    """The attempt, with its verdict, which is that of `refused`."""
    return Attempt(
        push=push,
        repo=repo.name,
        ref=escape_ascii(command.ref),
        session=session_of(command.ref),
        old=escape_ascii(command.old) if command.old.strip("0") else None,
        new=escape_ascii(command.new) if command.new.strip("0") else None,
        verdict="rejected" if refused else "accepted",
        reason=refused.get(command.ref),
        client=caller.client,
        guest=caller.guest_name,
    )


def unbooked(decision: PushDecision, attempt: int, command: RefCommand) -> Unbooked:
    """The turn that an applied attempt becomes, before its commit was inspected. Its time is now."""
    session, at = session_of(command.ref) or "", rfc3339(time.time())
    return Unbooked(attempt, decision.repo.name, session, command.ref, command.new, at, decision.client, decision.guest)


def turn_recorded(decision: PushDecision, command: RefCommand) -> TurnRecorded:
    """The event of an applied attempt."""
    change = RefChange(command.ref, None if command.old == ZERO_OID else command.old, command.new)
    return TurnRecorded(
        repo=decision.repo,
        session=session_of(command.ref),
        change=change,
        client=decision.client,
        guest=decision.guest,
    )
