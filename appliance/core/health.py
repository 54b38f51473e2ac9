"""A mirror's lag, state and followed branch, computed from its health. Pure: times are passed in as arguments."""

from __future__ import annotations

from appliance.core.models import Health, Repo, State

FAILING_AFTER = 3
"""Failures in a row that make a cloned mirror failing; a mirror that was never cloned is failing after the first."""


def lag_of(health: Health, now: float) -> float | None:
    """Returns the seconds since the mirror was last verified equal to its upstream, or None if it never was."""
    return None if health.verified_at is None else max(0.0, now - health.verified_at)


def state_of(repo: Repo, health: Health, now: float, stale_after: float) -> State:
    """Returns the state that operators see. A damaged mirror is damaged first, whatever its refreshes say."""
    lag = lag_of(health, now)
    if not repo.enabled:
        return State.DISABLED
    if health.damage:
        return State.DAMAGED
    if not health.cloned:
        return State.FAILING if health.failures else State.CLONING if health.cloning else State.NEW
    if health.failures >= FAILING_AFTER:
        return State.FAILING
    if lag is None or lag > stale_after:
        return State.STALE
    return State.FRESH


def followed_branch(repo: Repo, health: Health) -> str | None:
    """The branch that snapshots and warming follow: the registered one, else the upstream's HEAD."""
    return repo.branch or (health.head.removeprefix("refs/heads/") if health.head else None)
