"""What is due when: the interval is kept, failures back off, and who waits for whom. Pure."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.core.health import FAILING_AFTER, lag_of, state_of
from appliance.core.models import UNHEALTHY, Health, Repo, State
from appliance.core.refresh.schedule import (
    ASKING_HOLDS,
    BACKOFF_START,
    CLONING_HOLDS,
    FETCHING_HOLDS,
    Lane,
    delay_after,
    holds_place,
    lane_of,
)

INTERVALS = st.floats(1, 7 * 86400)
JITTER = st.floats(0, 1)


@given(INTERVALS, JITTER)
def test_jitter_shortens_by_a_tenth_at_most(interval: float, jitter: float) -> None:
    """The interval is a promise: a healthy mirror is never asked for later than that."""
    assert 0.9 * interval <= delay_after(interval, 0, jitter) <= interval


def test_jitter_spreads() -> None:
    """Mirrors that were started together do not stay together."""
    assert delay_after(60, 0, 0) == 60
    assert delay_after(60, 0, 0.5) == pytest.approx(57)
    assert delay_after(60, 0, 1) == pytest.approx(54)


@pytest.mark.parametrize(("interval", "first"), [(1, 1), (4, 4), (5, 5), (60, 5), (86400, 5)])
def test_backoff_starts_at_the_interval_and_at_five_seconds_at_most(interval: float, first: float) -> None:
    """A hiccup of a repository that is asked for daily is not waited out for a day."""
    assert delay_after(interval, 1, 0) == first


@given(INTERVALS, st.integers(1, 10_000), JITTER)
def test_backoff_grows_and_is_capped(interval: float, failures: int, jitter: float) -> None:
    """Each failure in a row doubles the wait, up to the interval: an upstream that is back is followed in time."""
    delay = delay_after(interval, failures, 0)
    following = delay_after(interval, failures + 1, 0)
    assert min(interval, BACKOFF_START) <= delay <= interval
    assert following == pytest.approx(min(2 * delay, interval))
    assert 0.9 * delay <= delay_after(interval, failures, jitter) <= delay


@pytest.mark.parametrize(
    ("health", "lane"),
    [
        (Health(), Lane.CLONE),
        (Health(cloned=True), Lane.HEALTHY),
        (Health(cloned=True, failures=1), Lane.TROUBLED),
        (Health(failures=1), Lane.TROUBLED),
    ],
)
def test_clones_and_trouble_have_lanes_of_their_own(health: Health, lane: Lane) -> None:
    """The healthy wait for the healthy only."""
    assert lane_of(health) is lane


def test_what_hangs_gives_its_place_back() -> None:
    """An upstream that says nothing holds a place for a second, a fetch for longer, a first clone for longest."""
    for lane in Lane:
        assert holds_place(ASKING_HOLDS - 0.01, False, lane)
        assert not holds_place(ASKING_HOLDS, False, lane)
    for lane, holds in ((Lane.HEALTHY, FETCHING_HOLDS), (Lane.TROUBLED, FETCHING_HOLDS), (Lane.CLONE, CLONING_HOLDS)):
        assert holds_place(holds - 0.01, True, lane)
        assert not holds_place(holds, True, lane)


def _repo(*, enabled: bool = True) -> Repo:
    return Repo(1, "acme/widgets", "https://example.com/acme/widgets", None, "cli", None, enabled, 0.0)


@pytest.mark.parametrize(
    ("health", "state"),
    [
        (Health(), State.NEW),
        (Health(cloning=True), State.CLONING),
        (Health(failures=1, last_error="no"), State.FAILING),
        (Health(failures=1, cloning=True), State.FAILING),
        (Health(cloned=True, verified_at=100), State.FRESH),
        (Health(cloned=True, verified_at=100, failures=FAILING_AFTER - 1), State.FRESH),
        (Health(cloned=True, verified_at=100, failures=FAILING_AFTER), State.FAILING),
        (Health(cloned=True, verified_at=40), State.FRESH),
        (Health(cloned=True, verified_at=39.9), State.STALE),
        (Health(cloned=True), State.STALE),
        (Health(cloned=True, verified_at=0, failures=FAILING_AFTER), State.FAILING),
        (Health(cloned=True, verified_at=100, damage="a blob is lost"), State.DAMAGED),
        (Health(cloned=True, verified_at=0, failures=FAILING_AFTER, damage="a blob is lost"), State.DAMAGED),
    ],
)
def test_states(health: Health, state: State) -> None:
    """What an operator is told, at second 100 with `stale_after` of 60."""
    assert state_of(_repo(), health, 100, 60) is state
    assert (state in UNHEALTHY) is (state in (State.STALE, State.FAILING, State.DAMAGED))
    assert state_of(_repo(enabled=False), health, 100, 60) is State.DISABLED


def test_lag_counts_from_the_last_good_refresh() -> None:
    """Never verified has no lag; a clock that was set back gives none below zero."""
    assert lag_of(Health(), 100) is None
    assert lag_of(Health(verified_at=40), 100) == 60
    assert lag_of(Health(verified_at=101), 100) == 0
