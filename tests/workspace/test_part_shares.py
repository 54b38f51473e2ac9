"""Which parts are kept and built next, when a guest asks for ever more."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.core.layout import Layout
from appliance.core.models import Health, Repo
from appliance.core.workspace.history import History
from appliance.core.workspace.shape import Shape
from appliance.core.workspace.snapshot_place import Snapshot
from appliance.core.workspace.snapshot_registry import (
    MOST_EXTRA,
    MOST_EXTRA_BYTES,
    MOST_PARTS,
    KeptBranch,
    KeptRepository,
    KeptSnapshots,
    NoSnapshot,
)

REPO = Repo(1, "acme/widgets", "https://github.com/acme/widgets", "main", "cli", None, True, 0.0)
WHOLE = Shape(History.FULL)


def part(name: str) -> Shape:
    """A part of one directory."""
    return Shape(History.TREES, (name,))


class Shelf:
    """What is kept of one repository, whose branch `main` has its usual snapshot."""

    def __init__(self, directory: Path) -> None:
        self.kept = KeptSnapshots(Layout(directory), lambda _: Health())
        self.known: KeptRepository = self.kept.repository(REPO)
        self.main: KeptBranch = self.kept.branch(self.known, "main")
        self.main.usual = WHOLE
        self.kept.keep(self.known, self.main, WHOLE)

    def ask(self, shape: Shape, asker: str, branch: str = "main", size: int = 0) -> None:
        """Request a snapshot, which then is there."""
        kept = self.kept.keep(self.known, self.kept.branch(self.known, branch), shape, asker)
        kept.current = Snapshot("", branch, "0" * 40, "", size, "", shape.history, shape.key)

    def has(self, shape: Shape) -> bool:
        """Whether it is still there on `main`."""
        return shape in self.main.kept


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    """Nothing but the usual snapshot."""
    return Shelf(tmp_path)


def test_the_bound_holds_before_the_usual_snapshot_is_there(shelf: Shelf) -> None:
    """It may wait for LFS files, while guests ask for other shapes, and it is not among those that go."""
    shelf.main.usual, shelf.main.chosen = None, WHOLE
    others = [Shape(History.TIP, modules=(number,)) for number in range(MOST_EXTRA + 1)]
    for number, shape in enumerate(others):
        shelf.ask(shape, f"guest {number}")
    assert [shelf.has(shape) for shape in (WHOLE, *others)] == [True, False, *[True] * MOST_EXTRA]


def test_a_guest_that_asks_for_a_thousand_parts_replaces_its_own(shelf: Shelf) -> None:
    """What others use stays, also what they have not asked for in a while."""
    shelf.ask(part("theirs"), "other")
    shelf.ask(part("shared"), "other")
    shelf.ask(part("shared"), "third")
    shelf.ask(Shape(History.TIP), "other")
    for number in range(1000):
        shelf.ask(part(f"d{number}"), "greedy")
    for shape in (part("theirs"), part("shared"), part("d999"), Shape(History.TIP), WHOLE):
        assert shelf.has(shape)
    assert len(shelf.main.parts()) == MOST_PARTS


def test_of_one_guest_the_part_goes_that_it_asked_for_longest_ago(shelf: Shelf) -> None:
    """A request makes it young again."""
    for number in range(MOST_PARTS):
        shelf.ask(part(f"d{number}"), "one")
    shelf.ask(part("d0"), "one")
    shelf.ask(part("new"), "one")
    assert shelf.has(part("d0")) and not shelf.has(part("d1"))


def test_other_branches_are_as_many_as_before(shelf: Shelf) -> None:
    """Parts and whole snapshots do not push each other out."""
    for number in range(MOST_EXTRA + 3):
        shelf.ask(WHOLE, "one", f"topic/{number}")
    for number in range(MOST_PARTS + 3):
        shelf.ask(part("a"), "one", f"part/{number}")
    branches = sorted(shelf.known.branches)
    assert len([name for name in branches if name.startswith("topic/")]) == MOST_EXTRA
    assert len([name for name in branches if name.startswith("part/")]) == MOST_PARTS


def test_large_parts_are_fewer(shelf: Shelf) -> None:
    """All of them are within a budget, in which the tree of another branch counts."""
    for number in range(6):
        shelf.ask(part(f"d{number}"), "one", size=MOST_EXTRA_BYTES // 8)
    assert len(shelf.main.parts()) == 5
    shelf.ask(part("a"), "one", "side")
    shelf.known.branches["side"].kept[part("a")].place.left_out = MOST_EXTRA_BYTES + 1
    shelf.ask(part("b"), "one")
    assert "side" not in shelf.known.branches and len(shelf.main.parts()) == 1


def test_a_part_that_is_being_built_stays(shelf: Shelf) -> None:
    """And if all were, the guest would be told to try again."""
    for number in range(MOST_PARTS):
        shelf.ask(part(f"d{number}"), "one")
    for kept in shelf.main.parts():
        kept.in_work = True
    with pytest.raises(NoSnapshot, match="try again"):
        shelf.ask(part("new"), "one")


def test_guests_take_turns(shelf: Shelf) -> None:
    """The part of one that asks for its first comes after one of the guest that asked for many."""
    for number in range(6):
        shelf.ask(part(f"d{number}"), "greedy")
    shelf.ask(part("x"), "modest")
    shelf.ask(part("y"), "modest")
    for kept in shelf.main.parts():
        kept.due = True
    built: list[str] = []
    while (kept_next := shelf.main.next_part()) is not None:
        shelf.main.took_turn(kept_next)
        kept_next.due = False
        built += kept_next.place.shape.only
    assert built == ["d0", "x", "d1", "y", "d2", "d3", "d4", "d5"]
