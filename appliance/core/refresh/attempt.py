"""What one attempt at a refresh means for a mirror's health, its delay and its history: for `serve`, and for a command
that clones by itself.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from appliance.core.errors import GitmirrorError
from appliance.core.models import Health, RefreshOutcome, Repo
from appliance.core.refresh.failure import failure_of
from appliance.core.refresh.refresher import MirrorFacts, Refresher, RefreshRun
from appliance.core.refresh.schedule import delay_after

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RefreshAttempt:
    """One attempt that has ended.

    `columns` are those of Health that it changed, and `health` is the whole of it afterwards. `delay` is seconds until
    the next attempt, `patience` those of them in which the upstream does not want to be asked at all.
    """

    outcome: RefreshOutcome
    columns: Mapping[str, Any]
    health: Health
    delay: float
    patience: float


async def attempt(refresher: Refresher, run: RefreshRun) -> MirrorFacts | Exception:
    """Refreshes, and returns what came of it: whatever went wrong is this repository's trouble and no other's."""
    try:
        return await refresher.refresh(run)
    except GitmirrorError as error:
        return error
    except Exception as error:
        log.exception("%s: refresh failed", run.repo.name)
        return error


def conclude(
    repo: Repo,
    before: Health,
    came: MirrorFacts | Exception,
    *,
    interval: float,
    duration: float,
    ended_at: float,
    jitter: float = 0.0,
    asked: bool = False,
) -> RefreshAttempt:
    """Concludes an attempt of `duration` seconds that ended at `ended_at` (Unix seconds) with what `came` of it.

    `interval` is the repository's, in seconds. `jitter` is in 0..1 and shortens the delay (see `delay_after`).
    """
    # Reckoned back from the end: the clock may have been set meanwhile.
    started_at = ended_at - duration
    if isinstance(came, MirrorFacts):
        failures, patience = 0, 0.0
        outcome = RefreshOutcome(repo.name, started_at, duration, came.moved, asked=asked)
        columns = came.columns(started_at)
    else:
        failure = failure_of(came)
        failures, patience = before.failures + 1, failure.retry_after or 0.0
        outcome = RefreshOutcome(repo.name, started_at, duration, error=failure.words, kind=failure.kind, asked=asked)
        columns = failure.columns(started_at, ended_at, failures)
    delay = max(delay_after(interval, failures, jitter), patience)
    columns["next_due"] = ended_at + delay
    return RefreshAttempt(outcome, columns, replace(before, **columns), delay, patience)
