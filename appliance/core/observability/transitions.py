"""Pure rules: which events and alerts follow from a repository's old and new condition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from appliance.core.events.facts import ConditionChanged
from appliance.core.git.failures import hint_of
from appliance.core.health import lag_of, state_of
from appliance.core.models import UNHEALTHY, Health, Repo, State
from appliance.core.units import format_duration

STALE, FAILING, RECOVERED = "stale", "failing", "recovered"


@dataclass(frozen=True)
class Condition:
    """A repository's condition at one moment. `late` means that its lag exceeds `stale_after`, whatever the state."""

    state: State
    late: bool


@dataclass(frozen=True)
class LastAlert:
    """The content of the last alert about a repository. `since` is in Unix seconds."""

    state: State
    kind: str | None
    since: float


def condition_of(repo: Repo, health: Health, now: float, stale_after: float) -> Condition:
    """The condition at `now`, in Unix seconds."""
    state, lag = state_of(repo, health, now, stale_after), lag_of(health, now)
    return Condition(state, state is State.STALE or (lag is not None and lag > stale_after))


def events_between(before: Condition | None, after: Condition) -> Sequence[str]:
    """The events to publish. Without an earlier condition, only a bad one is news."""
    if before is not None and after.state is State.FRESH:
        return [RECOVERED] if before.state in UNHEALTHY else []
    known = before if before is not None and before.state in UNHEALTHY else None
    events = []
    if after.state is State.FAILING and (known is None or known.state is not State.FAILING):
        events.append(FAILING)
    if after.state in UNHEALTHY and after.late and (known is None or not known.late):
        events.append(STALE)
    return events


def alert_between(last: LastAlert | None, state: State, kind: str | None) -> str | None:
    """The event that is due as an alert: one when a repository becomes stale or failing, one when it recovers.

    An alert without a kind of error, because the upstream only hung, is followed by one with the kind once it is known.
    """
    if state in UNHEALTHY:
        if last is None or (last.kind is None and kind is not None):
            return str(state)
        return None
    return RECOVERED if last is not None and state is State.FRESH else None


def condition_changed(
    condition: str, repo: Repo, health: Health, state: State, now: float, since: float, asking_for: float = 0.0
) -> ConditionChanged:
    """The event for an alert and for the event stream. `asking_for` is how long a refresh has been running, seconds."""
    lag = lag_of(health, now)
    words = health.last_error
    if words is None and state in UNHEALTHY:
        behind = "never" if lag is None else f"not for {format_duration(lag)}"
        running = f"; its upstream has not answered for {format_duration(asking_for)}" if asking_for else ""
        words = f"verified equal to its upstream {behind}{running}"
    return ConditionChanged(
        at=now,
        repo=repo,
        condition=condition,
        state=str(state),
        error=health.error_kind,
        words=words,
        hint=hint_of(health.error_kind, health.sessions),
        lag=None if lag is None else round(lag, 3),
        failures=health.failures,
        since=since,
    )
