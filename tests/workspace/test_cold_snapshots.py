"""Which snapshots go when the disk is short, and which do not: what is being built or sent, or was just asked for."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from appliance.core.layout import Layout
from appliance.core.models import Health, Repo
from appliance.core.workspace.cold_snapshots import ColdSnapshots
from appliance.core.workspace.history import History
from appliance.core.workspace.set_aside import SOON, SetAside
from appliance.core.workspace.shape import Shape
from appliance.core.workspace.snapshot_place import Snapshot
from appliance.core.workspace.snapshot_registry import KeptSnapshot, KeptSnapshots, NoSnapshot

KIB = 1024
HOUR = 3600.0


def repo(number: int, *, enabled: bool = True) -> Repo:
    """One of several."""
    return Repo(number, f"acme/r{number}", f"https://example.com/r{number}", "main", "cli", None, enabled, 0.0)


@dataclass
class Lab:
    """Snapshots that nobody built: each has a tar of 64 KiB."""

    layout: Layout
    repos: list[Repo] = field(default_factory=lambda: [repo(1), repo(2)])
    is_on: bool = True
    last_use: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.kept = KeptSnapshots(self.layout, lambda _: Health())
        self.cold = ColdSnapshots(
            self.layout, self.kept, lambda: self.repos, lambda: self.is_on, lambda: self.last_use
        )  # fmt: skip

    def add(self, of: Repo, branch: str = "main", history: History = History.FULL, *, ago: float = 0.0) -> KeptSnapshot:
        """A snapshot that a guest asked for so many seconds ago; with 0, nobody did in this `serve`."""
        known = self.kept.repository(of)
        found = self.kept.branch(known, branch)
        kept = self.kept.keep(known, found, Shape(history))
        found.usual = found.usual or Shape(history)
        kept.place.directory.mkdir(parents=True)
        kept.current = Snapshot(of.url, branch, "1" * 40, "etag", 64 * KIB, "one.tar", history, history)
        kept.place.path(kept.current).write_bytes(b"x" * 64 * KIB)
        kept.place.description.touch()
        if ago:
            kept.was_asked, kept.asked_at = True, time.monotonic() - ago
        return kept

    def next(self) -> list[tuple[str, str]]:
        """What goes, in this order."""
        sizes = {f"acme/r{number}": KIB for number in range(9)}
        return [(thing.repo, thing.what) for thing in asyncio.run(self.cold.candidates(sizes))]

    def reclaim(self, wanted: int) -> list[str]:
        """Removes; returns what went."""
        sizes = {f"acme/r{number}": KIB for number in range(9)}
        return [thing.what for thing in asyncio.run(self.cold.reclaim(wanted, sizes))]


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """Two repositories without snapshots."""
    return Lab(Layout(tmp_path))


def test_a_directory_that_a_build_removes_meanwhile_is_passed_over(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was evicted then, on a disk that was short."""
    packs = lab.add(repo(1), ago=HOUR).place.packs
    packs.mkdir()
    scandir = os.scandir

    def remove_first(path: Any = ".") -> Any:
        if str(path) == str(packs):
            packs.rmdir()
        return scandir(path)

    monkeypatch.setattr(os, "scandir", remove_first)
    assert lab.next() == [("acme/r1", "the snapshot of main")]
    assert not packs.exists()


def test_the_longest_unused_first(lab: Lab) -> None:
    """A shape of a branch before the branch; what no guest of this `serve` asked for counts by the history."""
    lab.last_use["acme/r2"] = time.time() - 5 * HOUR
    lab.add(repo(1), ago=2 * HOUR)
    lab.add(repo(1), history=History.TIP, ago=3 * HOUR)
    lab.add(repo(1), branch="old", ago=9 * HOUR)
    lab.add(repo(2))
    assert lab.next() == [
        ("acme/r1", "the snapshot of old"),
        ("acme/r2", "the snapshot of main"),
        ("acme/r1", "the snapshot of main (tip)"),
        ("acme/r1", "the snapshot of main"),
    ]
    assert lab.reclaim(80 * KIB) == ["the snapshot of old", "the snapshot of main"]
    assert [known.repo.id for known, _, _ in lab.kept.all()] == [1, 1]


def test_what_is_in_use_stays(lab: Lab) -> None:
    """What is being sent, what a guest is about to open, and what is being built."""
    sent, asked = lab.add(repo(1), ago=HOUR), lab.add(repo(1), branch="asked", ago=1)
    lab.add(repo(2), ago=HOUR)
    assert sent.current is not None and asked.current is not None

    async def build() -> None:
        branch = lab.kept.repository(repo(2)).branches["main"]
        branch.building = asyncio.create_task(asyncio.sleep(60))
        with sent.place.path(sent.current).open("rb"):  # type: ignore[arg-type]
            assert await lab.cold.candidates({}) == []
            assert await lab.cold.reclaim(2**30, {}) == []
        assert [thing.repo for thing in await lab.cold.candidates({})] == ["acme/r1"]

    asyncio.run(build())


def test_what_is_left_of_others_goes_first(lab: Lab) -> None:
    """Of a disabled repository and of one that is gone, and of all of them if snapshots are off."""
    lab.repos = [repo(1), repo(3, enabled=False)]
    lab.add(repo(1), ago=9 * HOUR)
    for number in (3, 4):
        place = lab.layout.workspaces / f"acme/r{number}"
        (place / "b-main").mkdir(parents=True)
        os.utime(place, (number, number))
    (lab.layout.workspaces / "acme" / "+gone-r5-1" / "b-main").mkdir(parents=True)
    left = "the snapshots of a repository that is not served"
    assert lab.next() == [("acme/r3", left), ("acme/r4", left), ("acme/r1", "the snapshot of main")]
    assert lab.reclaim(1) == [left]
    assert sorted(path.name for path in (lab.layout.workspaces / "acme").iterdir()) == ["r1", "r4"]
    lab.is_on = False
    assert ("acme/r1", left) in lab.next()


def test_a_repository_may_be_called_like_what_is_being_removed(lab: Lab) -> None:
    """As it was called by version 0.1."""
    served = replace(repo(1), name="acme/.gone-x")
    lab.repos = [served]
    kept = lab.add(served, ago=1)
    assert lab.reclaim(1) == [] and kept.place.of_branch.exists()


def test_what_a_failed_build_left_goes(lab: Lab) -> None:
    """It has no tar, but a working tree."""
    kept = lab.add(repo(1))
    kept.current = None
    (kept.place.work / "tree").mkdir(parents=True)
    assert lab.reclaim(1) == ["the snapshot of main"]
    assert not kept.place.of_branch.exists()


def test_a_branch_that_went_is_set_aside(lab: Lab) -> None:
    """Whoever asks has it built, unless it went just after somebody had asked. Only the followed one gets a file."""
    lab.add(repo(1), ago=2 * HOUR)
    lab.add(repo(1), branch="other", ago=3 * HOUR)
    lab.add(repo(2), ago=60)
    assert len(lab.reclaim(2**30)) == 3
    assert [lab.kept.is_set_aside(repo(1), name) for name in ("main", "other")] == [True, False]
    assert KeptSnapshots(lab.layout, lambda _: Health()).is_set_aside(repo(1), "main")
    lab.kept.ask_for(repo(1), "main")
    assert not lab.kept.is_set_aside(repo(1), "main")
    with pytest.raises(NoSnapshot, match="no room for the snapshot of main now"):
        lab.kept.ask_for(repo(2), "main")
    assert lab.kept.is_set_aside(repo(2), "main")


def test_it_is_refused_for_a_while(tmp_path: Path) -> None:
    """Then it may be tried again."""
    now, place = [0.0], tmp_path / "b-main"
    aside = SetAside(lambda: now[0])
    aside.put(place, 0.0, is_followed=True)
    assert aside.is_refused(place)
    now[0] = SOON
    assert not aside.is_refused(place) and aside.has(place)
    aside.put(place, None, is_followed=True)
    assert not aside.is_refused(place)
