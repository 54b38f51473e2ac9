"""Derives a mirror's health, delay and history from one attempt at a refresh.

Both `serve` and a command that clones without `serve` use this.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from appliance.core.errors import GitmirrorError
from appliance.core.models import Health, RefreshOutcome, Repo
from appliance.core.refresh.failure import HeardFailure, failure_of
from appliance.core.refresh.runs import MirrorFacts, RefreshRun
from appliance.core.refresh.schedule import delay_after, delay_of_hearer
from appliance.core.refresh.sources import Source

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RefreshAttempt:
    """One attempt that has ended.

    `columns` are the columns of Health that it changed, and `health` is the complete Health afterwards. `delay` is the
    time until the next attempt in seconds. During the first `patience` seconds of it, Retry-After forbids any request.
    """

    outcome: RefreshOutcome
    columns: Mapping[str, Any]
    health: Health
    delay: float
    patience: float


async def attempt(source: Source, run: RefreshRun) -> MirrorFacts | Exception:
    """Refreshes and returns the result. Returns any error instead of raising it, so that it affects no other mirror."""
    try:
        return await source.refresh(run)
    except GitmirrorError as error:
        return error
    except Exception as error:
        log.exception("%s: refresh failed", run.repo.name)
        return error


def conclude(
    repo: Repo,
    before: Health,
    result: MirrorFacts | Exception,
    *,
    interval: float,
    duration: float,
    ended_at: float,
    jitter: float = 0.0,
    asked: bool = False,
) -> RefreshAttempt:
    """Evaluates the `result` of an attempt that took `duration` seconds and ended at `ended_at` (Unix seconds).

    `interval` is the repository's, in seconds. `jitter` is in 0..1 and shortens the delay (see `delay_after`).
    """
    # Calculated back from the end, because the clock may have been set meanwhile.
    started_at = ended_at - duration
    if isinstance(result, MirrorFacts):
        failures, patience = 0, 0.0
        outcome = RefreshOutcome(repo.name, started_at, duration, result.moved, asked=asked)
        columns = result.columns(started_at)
    else:
        failure = failure_of(result)
        failures, patience = before.failures + 1, failure.retry_after or 0.0
        outcome = RefreshOutcome(repo.name, started_at, duration, error=failure.words, kind=failure.kind, asked=asked)
        columns = failure.columns(started_at, ended_at, failures)
    delay = max(delay_after(interval, failures, jitter), patience)
    if isinstance(result, MirrorFacts | HeardFailure) and (heard := result.heard) is not None:
        # What counts is when the upstream was asked, by whichever node.
        columns |= {name: ended_at - heard.age for name in ("checked_at", "verified_at") if name in columns}
        delay = max(delay_of_hearer(interval, heard.next_in, jitter), patience)
    columns["next_due"] = ended_at + delay
    return RefreshAttempt(outcome, columns, replace(before, **columns), delay, patience)
