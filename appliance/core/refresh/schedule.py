"""When a refresh is due, and in which lane it runs. Pure: times are arguments, in seconds."""

from __future__ import annotations

from enum import StrEnum

from appliance.core.models import ALLOWED, Health

BACKOFF_START = 5.0

OVERDUE = 1.0
"""Seconds at least by which news of another node may be late before a node looks for itself."""

ASKING_HOLDS = 1.0
FETCHING_HOLDS = 5.0
CLONING_HOLDS = 30.0
"""How long a refresh occupies one of the `concurrency` slots, in seconds from its start. A refresh that hangs gives its
slot back and keeps hanging without one: with four slots and eight upstreams that stop responding at once, a healthy
ninth waits for two seconds.
"""


class Lane(StrEnum):
    """Refreshes wait only for others in their lane, so a clone or a failing upstream never delays healthy mirrors."""

    CLONE = "clone"
    DEMAND = "demand"
    """First clones that guests wait for, so that none of the operator's own waits for one of these."""
    HEALTHY = "healthy"
    TROUBLED = "troubled"


def lane_of(health: Health, source: str = "") -> Lane:
    """The lane that a mirror's next refresh runs in. `source` is its repository's."""
    if health.failures:
        return Lane.TROUBLED
    if health.cloned:
        return Lane.HEALTHY
    return Lane.DEMAND if source == ALLOWED else Lane.CLONE


def delay_after(interval: float, failures: int, jitter: float) -> float:
    """Seconds until the next refresh. `jitter` is in 0..1 and only shortens it, so the interval is never exceeded.

    After the first failure the delay is BACKOFF_START; it doubles with each further failure, and never exceeds the
    interval. So an upstream that recovers is refreshed within its interval, however long it was down.
    """
    delay = interval if failures == 0 else min(BACKOFF_START * 2 ** min(failures - 1, 30), interval)
    return delay * (1 - 0.1 * jitter)


def delay_of_hearer(interval: float, next_in: float, jitter: float) -> float:
    """Seconds until a node looks for itself, unless it hears from the one that looks again in `next_in` seconds.

    `jitter` is in 0..1, so that not all nodes notice at one moment that this one is gone.
    """
    return min(next_in, interval) + max(OVERDUE, 0.1 * interval) * (1 + 0.2 * jitter)


def holds_place(running_for: float, fetching: bool, lane: Lane) -> bool:
    """Whether a refresh that has run for `running_for` seconds still counts against `concurrency`."""
    fetching_holds = CLONING_HOLDS if lane is Lane.CLONE else FETCHING_HOLDS
    return running_for < (fetching_holds if fetching else ASKING_HOLDS)
