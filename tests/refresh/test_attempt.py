"""What one attempt means: the same for `serve` and for a command that clones by itself."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from appliance.core.errors import GitmirrorError
from appliance.core.git.command import GitError
from appliance.core.models import Health, Repo
from appliance.core.refresh.attempt import attempt, conclude
from appliance.core.refresh.refresher import Refresher
from appliance.core.refresh.runs import MirrorFacts, RefreshRun
from appliance.core.refresh.schedule import BACKOFF_START

REPO = Repo(1, "acme/widgets", "https://example.com/acme/widgets", None, "cli", None, True, 0.0)
FACTS = MirrorFacts(tip="a" * 40, head="refs/heads/main", refs=3, size=100)


def test_a_success_clears_what_was_wrong() -> None:
    """The lag is counted from the start of the attempt, and the next one is an interval away."""
    before = Health(failures=4, last_error="gone", error_kind="timeout", retry_at=5.0)
    ended = conclude(REPO, before, FACTS, interval=60, duration=2.5, ended_at=1000.0)
    assert (ended.health.verified_at, ended.health.failures, ended.health.last_error) == (997.5, 0, None)
    assert (ended.health.error_kind, ended.health.retry_at) == (None, None)
    assert (ended.delay, ended.patience, ended.health.next_due) == (60, 0, 1060.0)
    assert ended.outcome.result == "unchanged" and ended.outcome.started_at == 997.5


@pytest.mark.parametrize("failures", [0, 1, 3])
def test_a_failure_backs_off_and_keeps_the_rest(failures: int) -> None:
    """Earlier facts about the mirror stay; the delay doubles up to the interval."""
    before = Health(tip="b" * 40, verified_at=10.0, cloned=True, failures=failures)
    error = GitError("it failed", stderr="fatal: Could not resolve host: example.com")
    ended = conclude(REPO, before, error, interval=60, duration=1, ended_at=1000.0)
    assert (ended.health.tip, ended.health.verified_at, ended.health.failures) == ("b" * 40, 10.0, failures + 1)
    assert ended.delay == min(BACKOFF_START * 2**failures, 60)
    assert ended.outcome.error == ended.health.last_error and ended.outcome.kind == ended.health.error_kind == "dns"


def test_an_upstream_that_asks_for_patience_gets_it() -> None:
    """Also when that is longer than the interval."""
    error = GitError("slow down", stderr="The requested URL returned error: 429", retry_after=300)
    ended = conclude(REPO, Health(), error, interval=60, duration=1, ended_at=1000.0)
    assert (ended.delay, ended.patience, ended.health.retry_at) == (300, 300, 1300.0)


@pytest.mark.parametrize("error", [GitmirrorError("foreseen"), ZeroDivisionError("not foreseen")])
def test_whatever_goes_wrong_is_returned(error: Exception) -> None:
    """Only a cancellation is raised; every other error is returned."""

    class Failing:
        async def refresh(self, run: RefreshRun) -> MirrorFacts:
            raise error

    assert asyncio.run(attempt(cast(Refresher, Failing()), RefreshRun(REPO))) is error
