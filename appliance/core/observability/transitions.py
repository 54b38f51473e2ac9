"""What changed about a repository, and whether that is to be told: old state, new state, event. Pure."""

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
    """How a repository is at one moment. `late`: its lag is past `stale_after`, whatever else is wrong."""

    state: State
    late: bool


@dataclass(frozen=True)
class LastAlert:
    """What the last alert about a repository said; `since` in Unix seconds."""

    state: State
    kind: str | None
    since: float


def condition_of(repo: Repo, health: Health, now: float, stale_after: float) -> Condition:
    """The condition at `now`, Unix seconds."""
    state, lag = state_of(repo, health, now, stale_after), lag_of(health, now)
    return Condition(state, state is State.STALE or (lag is not None and lag > stale_after))


def events_between(before: Condition | None, after: Condition) -> Sequence[str]:
    """What the feed is told. Nothing is new about what was not known before, unless it is bad."""
    if before is not None and after.state is State.FRESH:
        return [RECOVERED] if before.state in UNHEALTHY else []
    known = before if before is not None and before.state in UNHEALTHY else None
    found = []
    if after.state is State.FAILING and (known is None or known.state is not State.FAILING):
        found.append(FAILING)
    if after.state in UNHEALTHY and after.late and (known is None or not known.late):
        found.append(STALE)
    return found


def alert_between(told: LastAlert | None, state: State, kind: str | None) -> str | None:
    """What an alert is due for: once when a repository turns stale or failing, once when it is well again.

    One that could not say why, since the upstream only hung, is followed by one that can.
    """
    if state in UNHEALTHY:
        if told is None or (told.kind is None and kind is not None):
            return str(state)
        return None
    return RECOVERED if told is not None and state is State.FRESH else None


def condition_changed(
    condition: str, repo: Repo, health: Health, state: State, now: float, since: float, asking_for: float = 0.0
) -> ConditionChanged:
    """The event of an alert and of the event stream. `asking_for`: seconds that a refresh has been running for."""
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
