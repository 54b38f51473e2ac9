"""When old values of refs end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from appliance.core.git.ref_sets import ANCHORS, TIPS
from appliance.core.maintenance.anchors import ANCHOR_AGE, MOST_TIPS, sort_out

NOW = 10**9.0
NAMES = st.one_of(st.integers(0, 30).map(lambda n: f"{ANCHORS}{n}"), st.integers(0, 30).map(lambda n: f"{TIPS}{n}"))
TIMES = st.floats(NOW - 2 * ANCHOR_AGE, NOW)


@given(st.sets(NAMES), st.dictionaries(NAMES, TIMES))
def test_an_anchor_stays_for_its_age_and_goes_after_it(present: set[str], seen: dict[str, float]) -> None:
    """Everything that is there is either kept with its time or named to go; what is gone from disk is forgotten."""
    kept, gone = sort_out(present, seen, NOW)
    assert set(kept) | set(gone) == present
    assert not set(kept) & set(gone)
    for ref in kept:
        assert kept[ref] == seen.get(ref, NOW) >= NOW - ANCHOR_AGE
    for ref in gone:
        assert seen[ref] < NOW - ANCHOR_AGE


def test_one_that_is_seen_for_the_first_time_begins_its_age_now() -> None:
    """Its ref has no date of its own."""
    assert sort_out([f"{ANCHORS}1"], {}, NOW) == ({f"{ANCHORS}1": NOW}, [])


def test_the_oldest_tips_go_when_there_are_too_many() -> None:
    """Each tip costs every push a little; the anchor beside it keeps the commit fetchable."""
    tips = {f"{TIPS}{n}": NOW - 1000 + n / 10 for n in range(MOST_TIPS + 3)}
    anchors = {f"{ANCHORS}{n}": NOW for n in range(5)}
    kept, gone = sort_out([*tips, *anchors], tips | anchors, NOW)
    assert gone == sorted(f"{TIPS}{n}" for n in range(3))
    assert len(kept) == MOST_TIPS + 5


def test_tips_that_end_by_age_leave_room_for_the_others() -> None:
    """Only what would stay is counted."""
    old = {f"{TIPS}old{n}": NOW - ANCHOR_AGE - 1 for n in range(10)}
    new = {f"{TIPS}{n}": NOW for n in range(MOST_TIPS)}
    kept, gone = sort_out([*old, *new], old | new, NOW)
    assert sorted(old) == gone
    assert kept.keys() == new.keys()
