"""What is due when, and in which lane it runs. Pure: times come in as arguments, in seconds."""

from __future__ import annotations

from enum import StrEnum

from appliance.core.models import Health

BACKOFF_START = 5.0

ASKING_HOLDS = 1.0
FETCHING_HOLDS = 5.0
CLONING_HOLDS = 30.0
"""How long a refresh holds its place among `concurrency`, from its start. One that hangs gives the place back and hangs
on its own: with four places and eight upstreams that go quiet at once, a healthy ninth waits for two seconds.
"""


class Lane(StrEnum):
    """Refreshes of one lane wait for each other only: a clone or an upstream in trouble never delays the healthy."""

    CLONE = "clone"
    HEALTHY = "healthy"
    TROUBLED = "troubled"


def lane_of(health: Health) -> Lane:
    """The lane that a mirror's next refresh runs in."""
    if health.failures:
        return Lane.TROUBLED
    return Lane.HEALTHY if health.cloned else Lane.CLONE


def delay_after(interval: float, failures: int, jitter: float) -> float:
    """Seconds until the next refresh. `jitter` is in 0..1 and only shortens, so that the interval is kept.

    After failures: the interval or BACKOFF_START, whichever is less, doubled with each up to the interval: an upstream
    that is back is followed within its interval again, however long it was gone.
    """
    delay = interval if failures == 0 else min(BACKOFF_START * 2 ** min(failures - 1, 30), interval)
    return delay * (1 - 0.1 * jitter)


def holds_place(running_for: float, fetching: bool, lane: Lane) -> bool:
    """Whether a refresh that has run for so many seconds still counts against `concurrency`."""
    fetching_holds = CLONING_HOLDS if lane is Lane.CLONE else FETCHING_HOLDS
    return running_for < (fetching_holds if fetching else ASKING_HOLDS)
