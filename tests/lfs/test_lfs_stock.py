"""Which objects are on disk: the budget, what goes first, what a kill leaves, and files that changed."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import shutil
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.core.errors import NoRoom
from appliance.core.layout import Layout
from appliance.core.lfs import stock as stocks
from appliance.core.lfs.cold_objects import ColdObjects
from appliance.core.lfs.stock import LfsStock
from appliance.core.models import Repo
from tests.lfs.lab import LfsLab, repo_of
from tests.support.gitutil import wait_until

REPO = repo_of("https://example.com/acme/widgets")
OTHER = repo_of("https://example.com/acme/other", "acme/other", 2)


@pytest.fixture
def stock(tmp_path: Path) -> LfsStock:
    """A store of a thousand bytes, in which everything may go at once."""
    return LfsStock(tmp_path / "lfs", 1000)


def put(stock: LfsStock, data: bytes, repo: Repo = REPO) -> str:
    """Stores an object; returns its id."""
    oid = hashlib.sha256(data).hexdigest()
    growing = stock.begin(repo)
    growing.write_bytes(data)
    stock.make_room(len(data))
    stock.add(repo, oid, growing, len(data))
    stock.give_back(len(data))
    return oid


def age(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was used just now is not protected any more."""
    monkeypatch.setattr(stocks, "PROTECTED", -1.0)


def test_the_least_recently_used_goes_and_is_in_the_log(
    stock: LfsStock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Over all repositories; one line for each."""
    caplog.set_level(logging.INFO)
    age(monkeypatch)
    first, second, third = put(stock, b"a" * 400), put(stock, b"b" * 400, OTHER), ""
    assert stock.path(REPO, first) is not None
    third = put(stock, b"c" * 400)
    assert stock.path(OTHER, second) is None
    assert stock.path(REPO, first) is not None and stock.path(REPO, third) is not None
    assert stock.bytes == 800 and stock.evicted == 1
    assert f"acme/other: the LFS object {second} (400 B) was evicted" in caplog.text


def test_the_disk_budget_takes_what_it_said(stock: LfsStock, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of use, as much as is needed, and none that is being sent."""
    oids = [put(stock, bytes([number]) * 200) for number in range(4)]
    assert stock.path(REPO, oids[0]) is not None
    kind = ColdObjects(stock)
    assert asyncio.run(kind.candidates({})) == []
    age(monkeypatch)
    with stock.in_use(REPO, oids[1]):
        told = asyncio.run(kind.candidates({}))
        assert [thing.what for thing in told] == [f"the LFS object {oids[number]}" for number in (2, 3, 0)]
        assert all(abs(thing.used_at - time.time()) < 60 for thing in told)
        assert asyncio.run(kind.reclaim(201, {})) == told[:2]
        assert asyncio.run(kind.reclaim(10_000, {})) == told[2:]
    assert stock.path(REPO, oids[1]) is not None and stock.bytes == 200


def test_what_was_just_used_stays(stock: LfsStock) -> None:
    """Rather than that, there is no room."""
    put(stock, b"a" * 600)
    with pytest.raises(NoRoom, match="in use"):
        put(stock, b"b" * 600)
    with pytest.raises(NoRoom, match="does not fit"):
        stock.make_room(1001)


def test_what_is_being_sent_stays(stock: LfsStock, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long ago it was used; and who has it open can read it to the end."""
    age(monkeypatch)
    oid = put(stock, b"a" * 600)
    with stock.in_use(REPO, oid):
        with pytest.raises(NoRoom):
            stock.make_room(600)
        path = stock.path(REPO, oid)
        assert path is not None
        with path.open("rb") as file:
            asyncio.run(stock.set_budget(0))
            assert file.read() == b"a" * 600
    assert stock.bytes == 0


def test_a_much_smaller_budget_holds_nobody_up(stock: LfsStock, monkeypatch: pytest.MonkeyPatch) -> None:
    """There may be tens of thousands of objects."""
    age(monkeypatch)
    for number in range(100):
        put(stock, bytes([number]) * 10)
    turns = 0

    async def shrink() -> None:
        nonlocal turns
        shrinking = asyncio.create_task(stock.set_budget(200))
        while not shrinking.done():
            await asyncio.sleep(0)
            turns += 1

    asyncio.run(shrink())
    assert stock.bytes == 200 and turns > 50


def test_what_a_kill_leaves(stock: LfsStock, tmp_path: Path) -> None:
    """Complete objects are found again, in the order of their use; half ones are removed."""
    oids = [put(stock, bytes([number]) * 10) for number in range(3)]
    for number, oid in enumerate(oids):
        os.utime(tmp_path / "lfs/acme/widgets" / oid[:2] / oid, (1000 - number, 10))
    half = stock.begin(REPO)
    half.write_bytes(b"half")
    (tmp_path / "lfs/acme/widgets/ab").mkdir(exist_ok=True)
    (tmp_path / "lfs/acme/widgets/ab/notes.txt").write_text("x")
    again = LfsStock(tmp_path / "lfs", 1000)
    again.load()
    assert not half.exists() and len(again) == 3 and again.bytes == 30
    gone = [again.evict_oldest("a test") for _ in range(4)]
    assert [each.oid if each else None for each in gone] == [*reversed(oids), None]


def test_a_changed_file_is_thrown_away(lab: LfsLab, stock: LfsStock, tmp_path: Path) -> None:
    """Whether it changed while `serve` ran or while it did not; one of another size needs no reading."""
    for start_again in (False, True):
        oid = put(stock, b"data")
        path = tmp_path / "lfs/acme/widgets" / oid[:2] / oid
        path.write_bytes(b"dath")
        if start_again:
            stock = LfsStock(tmp_path / "lfs", 1000)
            stock.load()
        lab.run(stock.check(REPO, oid))
        assert stock.path(REPO, oid) is None and not path.exists() and stock.damaged == 1
        stock.damaged = 0
    oid = put(stock, b"data")
    (tmp_path / "lfs/acme/widgets" / oid[:2] / oid).write_bytes(b"longer")
    assert stock.path(REPO, oid) is None


def test_the_scrub_reads_what_nobody_asked_for(lab: LfsLab, stock: LfsStock, tmp_path: Path) -> None:
    """After a start all of it, then only what is due."""
    oids = [put(stock, data) for data in (b"right", b"wrong")]
    (tmp_path / "lfs/acme/widgets" / oids[1][:2] / oids[1]).write_bytes(b"WRONG")
    again = LfsStock(tmp_path / "lfs", 1000)
    again.load()
    assert [lab.run(again.check_next()) for _ in range(3)] == [True, True, False]
    assert [again.path(REPO, oid) is not None for oid in oids] == [True, False]


def test_a_purge_leaves_nothing(stock: LfsStock, tmp_path: Path) -> None:
    """Of one repository alone."""
    put(stock, b"a")
    kept = put(stock, b"b", OTHER)
    stock.purge(REPO.name).result(20)
    assert [path.name for path in (Layout(tmp_path).lfs / "acme").iterdir()] == ["other"]
    assert stock.path(OTHER, kept) is not None and stock.bytes == 1
    stock.keep_only(["acme/third"])
    assert stock.bytes == 0


def test_a_purge_holds_nobody_up(stock: LfsStock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The objects are forgotten at once, their files go in a thread; the next object under the name does not wait."""
    places, goes_on = tmp_path / "lfs/acme", threading.Event()

    def remove(path: Path, **options: Any) -> None:
        assert threading.current_thread() is not threading.main_thread()
        assert goes_on.wait(20)
        shutil.rmtree(path, **options)

    monkeypatch.setattr(stocks, "shutil", SimpleNamespace(rmtree=remove))
    oid = put(stock, b"a")
    assert [place.name for place in places.iterdir()] == ["widgets"], "the first object removes nothing"
    purge = stock.purge(REPO.name)
    assert stock.path(REPO, oid) is None and stock.bytes == 0 and not (places / "widgets").exists()
    moved = replace(REPO, url="https://example.com/acme/moved")
    again = put(stock, b"a", moved)
    assert len(list(places.rglob(oid))) == 2, "the files are not there any more"
    goes_on.set()
    purge.result(20)
    wait_until(lambda: [place.name for place in places.iterdir()] == ["widgets"], message="all is removed")
    assert stock.path(moved, again) == next(places.rglob(oid))


def test_a_purge_that_was_killed_is_finished(stock: LfsStock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the next start."""
    put(stock, b"a")
    with monkeypatch.context() as patch:
        patch.setattr(stocks, "shutil", SimpleNamespace(rmtree=lambda path, **options: None))
        stock.purge(REPO.name).result(20)
    assert list((tmp_path / "lfs").rglob("*"))
    again = LfsStock(tmp_path / "lfs", 1000)
    again.load()
    assert len(again) == 0 and list((tmp_path / "lfs/acme").iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It fills up to what stays free for recordings; then the oldest objects go."""
    age(monkeypatch)
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", str(disk)], capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        stock = LfsStock(disk / "lfs", 2**30)
        oids = [put(stock, bytes([number]) * 2**20) for number in range(24)]
        assert stock.path(REPO, oids[0]) is None and stock.path(REPO, oids[-1]) is not None
        assert 10 <= len(stock) <= 16 and os.statvfs(disk).f_bavail * 4096 >= 2**20 - 2**16
        with pytest.raises(NoRoom, match="no room"):
            stock.make_room(17 * 2**20)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
