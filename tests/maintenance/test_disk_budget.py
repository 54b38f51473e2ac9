"""What goes when the state directory is too large: the kinds in their order, and no more than is needed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from appliance.core.layout import Layout
from appliance.core.maintenance.budget import DiskBudget, reserve_of
from appliance.core.maintenance.usage import Usage, UsageMeter
from appliance.core.process.cold import ColdThing
from appliance.core.process.disk import Space

KIB = 1024
NOW = 1_000_000.0
ROOMY = Space(2**40, 2**39)


@dataclass
class Evicted:
    """An object that a store removed."""

    repo: str
    oid: str
    size: int


@dataclass
class Files:
    """Things of one kind: files below a directory, the first by name first."""

    kind: str
    directory: Path
    asked: list[int] = field(default_factory=list)

    def fill(self, number: int, size: int = 64 * KIB) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        for count in range(number):
            (self.directory / f"{count:03}").write_bytes(b"x" * size)

    async def candidates(self, sizes: Mapping[str, int]) -> list[ColdThing]:
        paths = sorted(self.directory.iterdir()) if self.directory.exists() else []
        return [ColdThing(self.kind, "acme/widgets", path.name, path.stat().st_size, NOW - 60) for path in paths]

    async def reclaim(self, wanted: int, sizes: Mapping[str, int]) -> list[ColdThing]:
        self.asked.append(wanted)
        gone = []
        for thing in await self.candidates(sizes):
            if wanted <= 0:
                break
            (self.directory / thing.what).unlink()
            gone.append(thing)
            wanted -= thing.bytes
        return gone


@dataclass
class Lab:
    """A budget of a state directory in which answers and workspaces are files."""

    state: Path
    budget: int | None = None
    space: Space | None = ROOMY
    rooms: list[int | None] = field(default_factory=list)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        layout = Layout(self.state)
        self.answers = Files("answers", layout.cache)
        self.workspaces = Files("workspaces", layout.workspaces / "acme" / "widgets")
        self.kept = DiskBudget(
            layout, (self.answers, self.workspaces), lambda: self.budget, on_room=self.rooms.append,
            space=lambda: self.space, clock=lambda: NOW, timer=lambda: self.seconds,
        )  # fmt: skip

    def look(self) -> None:
        """Look, two seconds after the last time."""
        self.seconds += 2
        asyncio.run(self.kept.look())

    @property
    def left(self) -> tuple[int, int]:
        """How many answers and workspaces there are."""
        return len(list(self.answers.directory.iterdir())), len(list(self.workspaces.directory.iterdir()))


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """Ten files of 64 KiB of each kind."""
    made = Lab(tmp_path)
    made.answers.fill(10)
    made.workspaces.fill(10)
    return made


def test_nothing_goes_without_a_budget(lab: Lab) -> None:
    """Nor is the cache bounded by it."""
    lab.look()
    assert lab.left == (10, 10) and lab.rooms == [None]


def test_the_first_kind_goes_first(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    """Down to 95% of the budget; each repository's answers are one line in the log, with what, whose and why."""
    lab.budget = 1000 * KIB
    with caplog.at_level(logging.INFO):
        lab.look()
    assert lab.left == (4, 10)
    assert lab.kept.usage.total == 14 * 64 * KIB <= 0.95 * lab.budget
    [line] = caplog.messages
    assert line == (
        "acme/widgets: removed 6 cached responses (384 KiB, unused for 1m), "
        "because the state directory took 1.2 MiB of its budget of 1000 KiB"
    )
    assert lab.rooms == [int(0.95 * lab.budget) - 14 * 64 * KIB]
    assert (lab.kept.evictions["answers"], lab.kept.evicted_bytes["answers"]) == (6, 6 * 64 * KIB)


def test_the_next_kind_goes_when_the_first_has_nothing_left(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    """Each thing of it has a line of its own."""
    lab.budget = 300 * KIB
    with caplog.at_level(logging.INFO):
        lab.look()
    assert lab.left == (0, 4)
    assert [line.split(" (")[0] for line in caplog.messages][1:] == [
        f"acme/widgets: removed {number:03}" for number in range(6)
    ]


def test_within_the_budget_nothing_is_asked(lab: Lab) -> None:
    """At 96% of it, too: only what is past the budget begins a round."""
    lab.budget = int(20 * 64 * KIB / 0.96)
    lab.look()
    assert lab.answers.asked == []


def test_a_budget_that_cannot_be_kept(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    """It is said with what to do, once in the log, and it ends when the budget is raised."""
    (lab.state / "attachments" / "acme" / "widgets" / "1").mkdir(parents=True)
    (lab.state / "attachments" / "acme" / "widgets" / "1" / "a").write_bytes(b"x" * 512 * KIB)
    lab.budget = 256 * KIB
    lab.look()
    assert lab.left == (0, 0)
    assert lab.kept.trouble is not None and lab.kept.trouble.startswith(
        "the state directory is 256 KiB over [storage] budget (256 KiB), and what is left is in use or must not be "
        "removed: recordings 512 KiB; raise the budget, or remove sessions"
    )
    assert caplog.messages.count(lab.kept.trouble) == 1
    lab.budget = 1024 * KIB
    lab.look()
    assert lab.kept.trouble is None


def test_a_full_disk_is_a_shortage_without_a_budget(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    """Things go until twice the reserve is free. On a disk of 2 MiB the reserve is 5% of it."""
    lab.look()
    lab.space = Space(2 * 2**20, 50 * KIB)
    with caplog.at_level(logging.INFO):
        lab.look()
    assert lab.left == (7, 10)
    assert caplog.messages[0].endswith("because 50.0 KiB were free on the disk of 2.0 MiB")
    assert reserve_of(2**40) == 2**29


def test_growth_is_noticed_by_the_free_space(lab: Lab) -> None:
    """It is measured again when as much has gone from the disk as the budget has room for, and not before."""
    lab.budget = 30 * 64 * KIB
    lab.look()
    measured = lab.kept.usage
    lab.space = Space(ROOMY.total, ROOMY.free - 9 * 64 * KIB)
    lab.look()
    assert lab.kept.usage is measured
    lab.answers.fill(25)
    lab.space = Space(ROOMY.total, ROOMY.free - 15 * 64 * KIB)
    lab.look()
    assert lab.left == (18, 10)


def test_who_asks_for_the_status_puts_nothing_off(lab: Lab) -> None:
    """However often it is asked for: what it measured is looked at, and a warning ends with its cause."""
    lab.budget = 30 * 64 * KIB
    lab.look()
    lab.answers.fill(25)
    for _ in range(3):
        lab.seconds += 1.9
        asyncio.run(lab.kept.measure())
    lab.look()
    assert lab.left == (18, 10)
    lab.budget = 1
    lab.look()
    assert lab.kept.trouble is None and lab.left == (0, 0)
    lab.workspaces.fill(1)
    (lab.state / "attachments" / "acme" / "widgets").mkdir(parents=True)
    recorded = lab.state / "attachments" / "acme" / "widgets" / "1"
    recorded.write_bytes(b"x" * 64 * KIB)
    lab.seconds += 30
    asyncio.run(lab.kept.measure())
    lab.look()
    assert lab.kept.trouble is not None
    recorded.unlink()
    asyncio.run(lab.kept.measure())
    lab.look()
    assert lab.kept.trouble is None


def test_one_kind_that_fails_does_not_stop_the_others(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its error is logged."""

    async def fail(wanted: int, sizes: Mapping[str, int]) -> list[ColdThing]:
        raise OSError("no")

    monkeypatch.setattr(lab.answers, "reclaim", fail)
    lab.budget = 15 * 64 * KIB
    lab.look()
    assert lab.left == (10, 4)


def test_what_goes_next(lab: Lab) -> None:
    """In the order of the kinds; the answers of a repository are one entry."""

    async def look() -> list[ColdThing]:
        await lab.kept.look()
        return await lab.kept.next(3)

    found = asyncio.run(look())
    assert [(thing.kind, thing.what) for thing in found] == [
        ("answers", "10 cached responses"), ("workspaces", "000"), ("workspaces", "001"),
    ]  # fmt: skip
    assert found[0].bytes == 640 * KIB


def test_what_has_not_changed_is_not_walked_again(tmp_path: Path) -> None:
    """A tree deep below is, once something above it was replaced, as a build does, or an hour has passed."""
    clock = [NOW]
    meter = UsageMeter(Layout(tmp_path), clock=lambda: clock[0])
    branch = tmp_path / "workspaces" / "acme" / "widgets" / "b-main"
    deep = branch / "checkout" / "tree" / "src"
    deep.mkdir(parents=True)
    (deep / "a").write_bytes(b"x" * 64 * KIB)

    def size(usage: Usage) -> int:
        return usage.by["workspaces"]["acme/widgets"] // KIB

    assert size(meter.measure()) == 64
    (deep / "b").write_bytes(b"x" * 64 * KIB)
    assert size(meter.measure()) == 64
    (branch / "new.tar").write_bytes(b"x" * 4 * KIB)
    assert size(meter.measure()) == 132
    (deep / "c").write_bytes(b"x" * 64 * KIB)
    clock[0] += 3600
    assert size(meter.measure(paced=True)) == 196
