"""The registry and what is known of each mirror: one table for the config's list and for what was added by hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import pytest

from appliance.core.errors import UsageError
from appliance.core.models import Health, Hydration, RefChange, RefreshOutcome
from appliance.core.store import activity as activity_module
from appliance.core.store.activity import ActivityStore
from appliance.core.store.database import Database
from appliance.core.store.health import HealthStore
from appliance.core.store.registry import Registry, Wanted
from appliance.core.upstream import same_upstream

A, B = Wanted("o/a", "https://h/o/a"), Wanted("o/b", "https://h/o/b")


@dataclass
class Stores:
    """One database, and a clock that is set by hand."""

    database: Database
    now: float = 1000.0

    @property
    def registry(self) -> Registry:
        """The registry."""
        return Registry(self.database, lambda: self.now, same_upstream)

    @property
    def health(self) -> HealthStore:
        """Health and history."""
        return HealthStore(self.database)

    @property
    def activity(self) -> ActivityStore:
        """Hydrations."""
        return ActivityStore(self.database, lambda: self.now)


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[Stores]:
    """Empty ones."""
    database = Database(tmp_path / "gitmirror.db")
    yield Stores(database)
    database.close()


def table(registry: Registry) -> dict[str, tuple[str, bool]]:
    """Source and whether it is enabled, by name."""
    return {repo.name: (repo.source, repo.enabled) for repo in registry.all()}


# add, remove, enable


def test_what_is_added_is_listed_by_name(stores: Stores) -> None:
    """With everything that was given."""
    stores.registry.add(B)
    added = stores.registry.add(Wanted("o/a", "https://h/o/a", "next", 30.0))
    assert [repo.name for repo in stores.registry.all()] == ["o/a", "o/b"]
    assert stores.registry.get("o/a") == added
    assert (added.url, added.branch, added.interval, added.source, added.enabled, added.created_at) == (
        "https://h/o/a", "next", 30.0, "cli", True, 1000.0,
    )  # fmt: skip


def test_adding_the_same_upstream_again_changes_only_what_is_given(stores: Stores) -> None:
    """However its URL is written; its id, and with it its history, stays."""
    first = stores.registry.add(Wanted("o/a", "https://h/o/a", "main", 30.0))
    again = stores.registry.add(Wanted("o/a", "https://H/o/a.git/", interval=60.0))
    assert (again.id, again.url, again.branch, again.interval) == (first.id, "https://h/o/a", "main", 60.0)
    assert len(stores.registry.all()) == 1


def test_a_name_that_another_upstream_has_is_refused(stores: Stores) -> None:
    """And nothing changed."""
    before = stores.registry.add(A)
    with pytest.raises(UsageError, match="is taken by https://h/o/a") as caught:
        stores.registry.add(Wanted("o/a", "https://other/o/a"))
    assert "--name" in caught.value.hint
    assert stores.registry.all() == [before]


def test_adding_enables_what_was_disabled(stores: Stores) -> None:
    """Whoever adds it wants it served."""
    stores.registry.add(A)
    assert not stores.registry.change("o/a", {"enabled": False}).enabled
    assert stores.registry.add(A).enabled


# reconcile


def test_the_configs_list_becomes_the_registry(stores: Stores) -> None:
    """And again changes nothing."""
    assert stores.registry.reconcile([A, B]) == []
    before = stores.registry.all()
    assert table(stores.registry) == {"o/a": ("config", True), "o/b": ("config", True)}
    assert stores.registry.reconcile([A, B]) == []
    assert stores.registry.all() == before


def test_what_the_list_dropped_is_disabled_and_not_deleted(stores: Stores) -> None:
    """Its id stays, so back in the list it has its history."""
    stores.registry.reconcile([A, B])
    number = stores.registry.get("o/a").id
    stores.registry.reconcile([B])
    assert table(stores.registry) == {"o/a": ("config", False), "o/b": ("config", True)}
    stores.registry.reconcile([A, B])
    assert table(stores.registry)["o/a"] == ("config", True)
    assert stores.registry.get("o/a").id == number


def test_what_was_disabled_by_hand_stays_so_across_reloads(stores: Stores) -> None:
    """The list says what is followed; an operator's `disable` is not undone by it, nor by a drop and a return."""
    stores.registry.reconcile([A])
    stores.registry.change("o/a", {"enabled": False})
    for listed in ([A], [], [A]):
        stores.registry.reconcile(listed)
        assert table(stores.registry) == {"o/a": ("config", False)}
    stores.registry.change("o/a", {"enabled": True})
    assert table(stores.registry) == {"o/a": ("config", True)}


def test_what_was_added_by_hand_is_left_alone(stores: Stores) -> None:
    """The list need not know it."""
    stores.registry.add(A)
    assert stores.registry.reconcile([B]) == []
    assert table(stores.registry) == {"o/a": ("cli", True), "o/b": ("config", True)}


def test_what_was_added_by_hand_and_is_then_listed_becomes_the_configs(stores: Stores) -> None:
    """The same upstream: with its id, and the list's branch and interval."""
    number = stores.registry.add(Wanted("o/a", "https://h/o/a", "main", 30.0)).id
    stores.registry.reconcile([Wanted("o/a", "https://h/o/a.git", "next")])
    found = stores.registry.get("o/a")
    assert (found.id, found.source, found.branch, found.interval) == (number, "config", "next", None)


def test_a_name_that_was_added_by_hand_for_another_upstream_is_a_problem_in_words(stores: Stores) -> None:
    """Taking its mirror over would serve other commits under its name; the rest of the list is applied."""
    stores.registry.add(Wanted("o/a", "https://other/o/a"))
    [problem] = stores.registry.reconcile([A, B])
    assert "o/a" in problem and "https://other/o/a" in problem and "remove-repo" in problem
    assert table(stores.registry) == {"o/a": ("cli", True), "o/b": ("config", True)}
    assert stores.registry.get("o/a").url == "https://other/o/a"


def test_a_changed_url_in_the_list_is_followed(stores: Stores) -> None:
    """An upstream that moved keeps its name and its id; whoever schedules sees another URL and asks at once."""
    stores.registry.reconcile([A])
    number = stores.registry.get("o/a").id
    stores.registry.reconcile([Wanted("o/a", "https://moved/o/a")])
    assert (stores.registry.get("o/a").id, stores.registry.get("o/a").url) == (number, "https://moved/o/a")


def test_what_the_list_has_is_changed_and_removed_there(stores: Stores) -> None:
    """The error names the file to edit; adding it without changes is in order."""
    stores.registry.reconcile([A])
    assert stores.registry.add(A).source == "config"
    with pytest.raises(UsageError, match="comes from the config"):
        stores.registry.add(Wanted("o/a", "https://h/o/a", interval=5.0))
    with pytest.raises(UsageError, match="is listed in the config") as caught:
        stores.registry.remove("o/a", "/etc/x.toml")
    assert "/etc/x.toml" in caught.value.hint


def test_what_the_list_dropped_can_be_removed_or_taken_over_by_hand(stores: Stores) -> None:
    """It is nobody's any more."""
    stores.registry.reconcile([A, B])
    stores.registry.reconcile([])
    stores.registry.remove("o/a", "")
    assert stores.registry.add(B).source == "cli"
    assert table(stores.registry) == {"o/b": ("cli", True)}
    stores.registry.reconcile([])
    assert table(stores.registry) == {"o/b": ("cli", True)}


def test_enabling_what_the_list_dropped_makes_it_ones_own(stores: Stores) -> None:
    """Otherwise the next reload would disable it again."""
    stores.registry.reconcile([A])
    stores.registry.reconcile([])
    assert stores.registry.change("o/a", {"enabled": True}).source == "cli"
    stores.registry.reconcile([])
    assert table(stores.registry) == {"o/a": ("cli", True)}


# health and history


def outcome(number: int, repo: str = "o/a", error: str | None = None) -> RefreshOutcome:
    return RefreshOutcome(repo, float(number), 0.5, (RefChange("refs/heads/caf\udce9", None, "1" * 40),), error)


def test_health_is_kept_by_column(stores: Stores) -> None:
    """All stored columns of Health can be set; fields that exist only in memory and unknown names are refused."""
    number = stores.registry.add(A).id
    stores.health.update(number, tip="1" * 40, cloned=True, size=7)
    stores.health.record_refresh(number, outcome(1), failures=2, last_error="no route")
    found = stores.health.get(number)
    assert found == Health(tip="1" * 40, cloned=True, size=7, failures=2, last_error="no route")
    assert found.cloned is True
    assert stores.health.all() == {number: found}
    for unknown in ("cloning", "nonsense", "tip = 1 --"):
        with pytest.raises(ValueError, match="no columns of health"):
            stores.health.update(number, **{unknown: 1})


def test_every_stored_field_of_health_comes_back(stores: Stores) -> None:
    """None is forgotten on the way."""
    number = stores.registry.add(A).id
    values = {
        each.name: f"{each.name}" if "str" in str(each.type) else True if "bool" in str(each.type) else index + 1
        for index, each in enumerate(fields(Health))
        if each.name != "cloning"
    }
    stores.health.update(number, **values)
    assert stores.health.get(number) == Health(**values)  # type: ignore[arg-type]


def test_what_is_learnt_of_a_repository_that_is_gone_is_passed_over(stores: Stores) -> None:
    """A refresh may end after `remove-repo`."""
    number = stores.registry.add(A).id
    stores.registry.remove("o/a", "")
    stores.health.update(number, tip="1" * 40)
    stores.health.record_refresh(number, outcome(1), failures=0)
    stores.health.set_anchor_times(number, {})
    assert stores.health.all() == {}


def test_history_is_told_newest_first_and_by_repository(stores: Stores) -> None:
    """Each row has the moved refs as text that is valid in JSON."""
    number = stores.registry.add(A).id
    for each in range(3):
        stores.health.record_refresh(number, outcome(each), failures=0)
    stores.health.record_refresh(number, outcome(9, "o/b", "no route"), failures=1)
    found = stores.health.refreshes("o/a", limit=2)
    assert [row["started_at"] for row in found] == ["1970-01-01T00:00:02.000Z", "1970-01-01T00:00:01.000Z"]
    assert found[0]["moved"] == [{"ref": "refs/heads/caf\\xe9", "old": None, "new": "1" * 40}]
    assert list(found[0]) == ["id", "repo", "started_at", "duration", "result", "moved", "error", "kind"]
    assert [row["result"] for row in stores.health.refreshes()] == ["failed", "moved", "moved", "moved"]


# hydrations


def hydration(repo: str = "o/a") -> Hydration:
    return Hydration(repo, "1" * 40, 1, "depth 1", "hit", 10, 0.1, 0.2, "10.0.0.7", "git")


def test_hydrations_are_told_newest_first_and_followed_from_a_place(stores: Stores) -> None:
    """As `activity` and `activity --follow` show them."""
    stores.activity.record([(900.0, hydration()), (901.0, hydration("o/b")), (902.0, hydration())])
    assert [row["id"] for row in stores.activity.newest(2)] == [3, 2]
    assert [row["id"] for row in stores.activity.newest(9, repo="o/a")] == [3, 1]
    assert [row["id"] for row in stores.activity.after(1)] == [2, 3]
    assert stores.activity.newest(1)[0]["at"] == "1970-01-01T00:15:02.000Z"


def test_hydrations_are_bounded_in_age_and_number(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old rows are deleted when the next ones are added."""
    monkeypatch.setattr(activity_module, "MOST_ROWS", 3)
    stores.now = activity_module.LONGEST + 100
    stores.activity.record([(50.0, hydration()), (200.0, hydration())])
    assert [row["id"] for row in stores.activity.newest(9)] == [2]
    stores.activity.record([(201.0, hydration())] * 5)
    assert [row["id"] for row in stores.activity.newest(9)] == [7, 6, 5]
