"""The history of the node's figures: slots that add up, fall in resolution, and stay few."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest

from appliance.core.models import Hydration
from appliance.core.store.database import Database, rows
from appliance.core.store.figures import KEPT, SPANS, STEP, Figures, FigureStore
from appliance.core.store.histogram import DurationHistogram

NOW = 1769860800
OID = "1" * 40


def fetched(way: str = "hit", seconds: float = 0.5, size: int = 100, shape: str = "full") -> Hydration:
    return Hydration("acme/widgets", OID, 1, shape, way, size, 0.1, seconds, "c", "git")


def figures(*fetches: Hydration) -> Figures:
    found = Figures()
    for fetch in fetches:
        found.hydrated(fetch)
    return found


def test_a_quantile_is_right_to_within_nine_percent_and_merging_changes_nothing() -> None:
    dice = random.Random(7)
    durations = [math.exp(dice.gauss(-1, 1.5)) for _ in range(2_000)]
    whole = DurationHistogram(durations)
    parts = DurationHistogram(durations[:700])
    parts.merge(DurationHistogram.decode(DurationHistogram(durations[700:]).encode()))
    assert parts == whole and whole.total == 2_000
    for share in (0.5, 0.95, 1.0):
        exact = sorted(durations)[math.ceil(share * 2_000) - 1]
        assert whole.quantile(share) == pytest.approx(exact, rel=0.0906)
    assert DurationHistogram().quantile(0.5) is None
    assert (DurationHistogram([0.0, 1e9]).quantile(1.0) or 0) > 8 * 3600


def test_what_counts_as_a_hit_and_as_a_workspace() -> None:
    """Neither a fetch that cannot be cached nor one of a guest that had something already."""
    found = figures(
        fetched("hit"), fetched("joined"), fetched("snapshot"), fetched("miss"), fetched("direct"),
        fetched("direct", shape="depth 1, incremental"), fetched("miss", size=0),
    )  # fmt: skip
    assert (found.hydrations, found.warm, found.missed, found.bytes) == (7, 3, 2, 600)
    assert found.times.total == 5


def test_slots_add_up_in_both_resolutions_even_if_serve_was_restarted_within_one(tmp_path: Path) -> None:
    database = Database(tmp_path / "db")
    store = FigureStore(database, lambda: NOW + 25.0)
    store.add([(NOW - 60, figures(fetched("hit", 0.2))), (NOW - 50, Figures(refreshes=2, failures=1))])
    database.close()
    store = FigureStore(Database(tmp_path / "db"), lambda: NOW + 25.0)
    store.add([(NOW - 60, figures(fetched("miss", 3.0)))])
    fine, coarse = store.read(SPANS["10m"], NOW + 25.0), store.read(SPANS["1d"], NOW + 60.0)
    assert (fine.step, len(fine.slots), coarse.step, len(coarse.slots)) == (STEP, 60, 60, 1440)
    by_start = dict(fine.starts())
    slot = by_start[NOW - 60]
    assert slot is not None and (slot.hydrations, slot.warm, slot.missed) == (2, 1, 1)
    assert by_start[NOW - 40] is None, "nothing says that a serve ran"
    assert fine.total() == coarse.total() == store.read(SPANS["1h"], NOW + 25.0).total()
    assert fine.total().failures == 1 and fine.total().times == DurationHistogram([0.2, 3.0])
    by_minute = dict(fine.by(60).starts())
    assert sum(slot.hydrations for slot in by_minute.values() if slot) == 2


@pytest.mark.parametrize("text", ["", "null", "[1]", '{"a": 1}', '{"1": null}'])
def test_a_damaged_row_is_as_good_as_none(tmp_path: Path, text: str) -> None:
    """It is replaced by what comes next; an exception in the sampler would end serve."""
    database = Database(tmp_path / "db")
    store = FigureStore(database, lambda: NOW + 25.0)
    store.add([(NOW - 60, Figures(hydrations=1))])
    with database.writing() as connection:
        connection.conn.execute("UPDATE figures SET times = ?", (text,))
    assert store.read(SPANS["10m"], NOW + 25.0).total() == Figures()
    store.add([(NOW - 60, figures(fetched()))])
    assert store.read(SPANS["10m"], NOW + 25.0).total().hydrations == 1


def test_only_slots_that_are_surely_stored_are_read(tmp_path: Path) -> None:
    store = FigureStore(Database(tmp_path / "db"), lambda: NOW)
    assert [at for at, _ in store.read(SPANS["10m"], NOW + 3.0).starts()][-1] == NOW - 2 * STEP


@pytest.mark.parametrize("jump", [400 * 86_400, -400 * 86_400])
def test_a_wrong_clock_costs_no_history_and_the_table_stays_small(tmp_path: Path, jump: int) -> None:
    """Slots go when there are enough others, and first those that are farthest from now."""
    now = float(NOW)
    database = Database(tmp_path / "db")
    store = FigureStore(database, lambda: now)
    store.add([(at, Figures(hydrations=1)) for at in range(NOW - 100_000, NOW, STEP)])

    def stored() -> list[int]:
        with database.reading() as connection:
            return [row["at"] for row in rows(connection, "SELECT at FROM figures ORDER BY at")]

    assert len(stored()) == sum(KEPT.values())
    assert store.read(SPANS["1d"], NOW).total().hydrations >= 8_634
    now += jump
    store.add([(int(now), Figures(hydrations=1))])
    assert int(now) in stored() and len(stored()) == sum(KEPT.values())
    now -= jump
    assert store.read(SPANS["1d"], NOW).total().hydrations >= 8_634
    now += 60
    store.add([(int(now), Figures(hydrations=1))])
    assert NOW + jump not in stored() and len(stored()) == sum(KEPT.values())
