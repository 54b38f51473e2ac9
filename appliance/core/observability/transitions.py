"""Pure rules: which events and alerts follow from a repository's old and new condition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from appliance.core.events.facts import ConditionChanged, MirrorHealed
from appliance.core.git.failures import Kind, hint_of
from appliance.core.health import lag_of, state_of
from appliance.core.models import UNHEALTHY, Health, Repo, State
from appliance.core.text import storable
from appliance.core.units import format_duration

MOST_NAMED = 100
"""The most lost recordings that an alert names. `audit` names all."""
LOST_HINT = (
    "put them back from a backup, or end their sessions with `session drop`; `audit --repo REPO` names all that is lost"
)
STALE, FAILING, DAMAGED, RECOVERED = "stale", "failing", "damaged", "recovered"


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
    """The events to publish. Without an earlier condition, only a bad condition causes an event."""
    if before is not None and after.state is State.FRESH:
        return [RECOVERED] if before.state in UNHEALTHY else []
    known = before if before is not None and before.state in UNHEALTHY else None
    events = []
    if after.state is State.DAMAGED and (known is None or known.state is not State.DAMAGED):
        events.append(DAMAGED)
    if after.state is State.FAILING and (known is None or known.state is not State.FAILING):
        events.append(FAILING)
    if after.state in UNHEALTHY and after.late and (known is None or not known.late):
        events.append(STALE)
    return events


def alert_between(last: LastAlert | None, state: State, kind: str | None) -> str | None:
    """The event that is due as an alert: one when a repository becomes unhealthy, one when it recovers.

    An alert without a kind of error, because the upstream only hung, is followed by one with the kind once it is known.
    Damage is also reported if the repository was reported before for another reason.
    """
    if state in UNHEALTHY:
        is_new_damage = state is State.DAMAGED and last is not None and last.state is not State.DAMAGED
        if last is None or is_new_damage or (last.kind is None and kind is not None):
            return str(state)
        return None
    return RECOVERED if last is not None and state is State.FRESH else None


def losses_document(event: MirrorHealed, health: Health, stale_after: float) -> dict[str, Any]:
    """The alert that names, turn by turn, the recordings that a heal could not save. It has the keys of every alert."""
    state = state_of(event.repo, health, event.at, stale_after)
    named = [f"{storable(ref)} ({commit})" for ref, commit in list(event.lost.items())[:MOST_NAMED]]
    more = f" and {len(event.lost) - MOST_NAMED} more" if len(event.lost) > MOST_NAMED else ""
    found = replace(health, damage=f"these recordings are lost: {', '.join(named)}{more}")
    lost = condition_changed(DAMAGED, event.repo, found, State.DAMAGED, event.at, event.at)
    return replace(lost, state=str(state), hint=LOST_HINT).document()


def error_of(health: Health) -> str | None:
    """The error word of a condition: `mirror` for damage, otherwise that of the last refresh."""
    return str(Kind.MIRROR) if health.damage else health.error_kind


def condition_changed(
    condition: str, repo: Repo, health: Health, state: State, now: float, since: float, asking_for: float = 0.0
) -> ConditionChanged:
    """The event for an alert and for the event stream. `asking_for` is how long a refresh has been running, seconds."""
    lag = lag_of(health, now)
    words = health.damage if state is State.DAMAGED else health.last_error
    if words is None and state in UNHEALTHY:
        behind = "never" if lag is None else f"not for {format_duration(lag)}"
        running = f"; its upstream has not answered for {format_duration(asking_for)}" if asking_for else ""
        words = f"verified equal to its upstream {behind}{running}"
    return ConditionChanged(
        at=now,
        repo=repo,
        condition=condition,
        state=str(state),
        error=error_of(health),
        words=words,
        hint=hint_of(error_of(health)),
        lag=None if lag is None else round(lag, 3),
        failures=health.failures,
        since=since,
    )
