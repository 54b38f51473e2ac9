"""Which disks go: nothing that somebody has leased."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from appliance.core.config.settings import WorkspaceConfig
from appliance.core.workspace.disk import collection, collector
from appliance.core.workspace.disk.collection import MOST_SPARE, SPARE_FOR, Stock, plan_removals, take_stock
from appliance.core.workspace.disk.images import DiskForm, DiskImage
from tests.support.gitutil import wait_until
from tests.workspace.disk.leasing import (
    BLOCK,
    NAME,
    Bench,
    advance,
    paths,
    tip,
    until,
)

GIB = 2**30


def test_leases_expire_and_their_images_may_go(bench: Bench) -> None:
    """In the pass after their time is over, not before."""

    async def test(bench: Bench) -> None:
        repo = bench.add()
        await bench.sync(repo)
        first = await bench.lease(repo, ttl=60.0)
        advance(repo)
        await bench.sync(repo)
        second = await bench.lease(repo)
        bench.settings = WorkspaceConfig(disk_budget=1)
        await bench.disks.tidy()
        assert all(path.exists() for path in (*paths(first), *paths(second)))
        bench.now += 60
        await bench.disks.tidy()
        assert [document["id"] for document in await bench.disks.documents()] == [second["id"]]
        assert not paths(first)[0].exists() and all(path.exists() for path in paths(second))

    bench.run(test)


def test_beyond_the_budget_the_oldest_go_first_and_the_tip_last(bench: Bench) -> None:
    """As many as needed. A lower budget holds at once; at the end the blob file goes too."""

    async def test(bench: Bench) -> None:
        repo = bench.add()
        oldest = tip(repo)
        commits: list[str] = []
        bench.builder.tree_size = 64 * BLOCK
        for _ in range(3):
            commits.append(advance(repo, text=f"{len(commits)}\n"))
            await bench.sync(repo)
            await bench.disks.release((await bench.lease(repo))["id"])
        # The image that was made last is not of the tip.
        await bench.disks.release((await bench.lease(repo, commit=oldest))["id"])
        await bench.disks.tidy()
        first, second, current = commits
        assert bench.commits(repo) == [first, second, current, oldest]
        whole = sum(path.lstat().st_blocks * 512 for path in bench.place(repo).directory.rglob("*") if path.is_file())
        for gone, left in ((1, [second, current, oldest]), (66, [current, oldest]), (131, [current]), (196, [])):
            bench.settings = WorkspaceConfig(disk_budget=whole - gone * BLOCK)
            await bench.disks.tidy()
            assert bench.commits(repo) == left
        assert bench.place(repo).generations() == []

    bench.run(test)


def test_a_tip_without_room_is_not_built_ahead(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """It would be built for nobody and go again. The log says once how much is needed; asking for it builds it."""

    async def test(bench: Bench) -> None:
        repo = bench.add()
        await bench.sync(repo)
        bench.settings, known = WorkspaceConfig(disk_budget=3 * BLOCK), bench.disks._repository(repo.name)
        for _ in range(2):
            await bench.disks.release((await bench.lease(repo))["id"])
            await bench.disks.tidy()
            assert bench.commits(repo) == []
            count = len(bench.builder.orders)
            advance(repo, text=f"{count}\n")
            await bench.sync(repo)
            await until(lambda: known._following is not None and known._following.done())
            assert len(bench.builder.orders) == count
        [said] = [each.getMessage() for each in caplog.records if "disk_budget" in each.getMessage()]
        assert said.startswith(f"{NAME}: there is no room for the disk of main: [workspace] disk_budget is 12.0 KiB,")
        assert " KiB are needed;" in said
        bench.settings = WorkspaceConfig()
        await bench.lease(repo)
        moved = advance(repo, text="last\n")
        await bench.sync(repo)
        await until(lambda: moved in bench.commits(repo))

    bench.run(test)


def image(number: int, **changed: object) -> DiskImage:
    """An image of one generation, made at that time."""
    made = DiskImage(
        NAME, "https://h/a", "main", "a" * 40, DiskForm.EROFS, "full", "open", 1, f"i{number}", 1, 1, "", float(number)
    )
    return replace(made, **changed)  # type: ignore[arg-type]


def planned(*stocks: Stock, budget: int, now: float = 0.0) -> dict[str, tuple[list[str], list[int]]]:
    """The names of the images that go, and the generations, by repository."""
    removals, _ = plan_removals(stocks, budget, now)
    return {
        name: ([each.name for each in removal.images], removal.generations)
        for name, removal in removals.items()
        if removal.images or removal.generations
    }


def test_the_plan_goes_by_age_over_all_repositories() -> None:
    """Tips of followed branches after everything else, and by age too."""
    first, second, third, fourth = (image(number) for number in range(1, 5))
    one = Stock("a/one", {1: 120}, {first: 10, third: 10}, current={first})
    two = Stock("a/two", {1: 120}, {second: 10, fourth: 10}, current={fourth})
    assert planned(one, two, budget=240) == {}
    assert planned(one, two, budget=239) == {"a/two": (["i2"], [])}
    assert planned(one, two, budget=229) == {"a/two": (["i2"], []), "a/one": (["i3"], [])}
    assert planned(one, two, budget=219) == {"a/two": (["i2"], []), "a/one": (["i3", "i1"], [1])}
    assert planned(one, two, budget=0) == {"a/two": (["i2", "i4"], [1]), "a/one": (["i3", "i1"], [1])}


def test_the_plan_leaves_what_is_leased() -> None:
    """And the blob file of its generation, also if this version cannot read the image."""
    first, second = image(1), image(2)
    stock = Stock("a/one", {1: 120}, {first: 10, second: 10}, leased={(1, "i1")})
    assert planned(stock, budget=0) == {"a/one": (["i2"], [])}
    assert planned(Stock("a/one", {1: 120}, {second: 10}, leased={(1, "unread")}), budget=0) == {"a/one": (["i2"], [])}
    assert planned(Stock("a/one", {1: 120}, {}, leased={(1, "unread")}), budget=0) == {}


def test_the_plan_drops_what_is_of_no_use_whatever_the_budget() -> None:
    """Generations without an image, older ones, images of those that are leased, and images that were judged."""
    old, held, new, useless = image(1), image(2), image(3, generation=2), image(4, generation=2)
    stock = Stock("a/one", {1: 50, 2: 50, 3: 5}, {old: 1, held: 1, new: 1, useless: 1}, useless={useless})
    assert planned(stock, budget=GIB) == {"a/one": (["i4"], [1, 3])}
    stock = replace(stock, leased={(1, "i2")})
    assert planned(stock, budget=GIB) == {"a/one": (["i1", "i4"], [3])}


def test_the_plan_drops_old_tips_that_nobody_has() -> None:
    """After a day, and beyond the newest of a repository at once; nothing of a repository whose tips are not known."""
    images = [image(number) for number in range(1, MOST_SPARE + 5)]
    held, current, *spare = images
    stock = Stock(
        "a/one", {1: 10**6}, dict.fromkeys(images, 1), leased={(1, held.name)}, current={current}, is_judged=True
    )
    names = [each.name for each in spare]
    assert planned(stock, budget=GIB) == {"a/one": (names[:2], [])}
    assert planned(stock, budget=GIB, now=spare[9].made_at + SPARE_FOR) == {"a/one": (names[:9], [])}
    assert planned(stock, budget=GIB, now=10 * SPARE_FOR) == {"a/one": (names, [])}
    assert planned(replace(stock, is_judged=False), budget=GIB, now=10 * SPARE_FOR) == {}


def test_old_tips_do_not_pile_up(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a branch that moves often, some are kept for those who ask for a commit."""
    monkeypatch.setattr(collection, "MOST_SPARE", 2)

    async def test(bench: Bench) -> None:
        repo = bench.add()
        await bench.sync(repo)
        held = await bench.lease(repo)
        commits = [held["commit"]]
        for number in range(5):
            commits.append(advance(repo, text=f"{number}\n"))
            await bench.sync(repo)
            await bench.disks.release((await bench.lease(repo))["id"])
        await bench.disks.tidy()
        assert bench.commits(repo) == [commits[0], *commits[-3:]]
        monkeypatch.setattr(collection, "SPARE_FOR", -1.0)
        await bench.disks.release(held["id"])
        await bench.disks.tidy()
        assert bench.commits(repo) == commits[-1:]

    bench.run(test)


def test_a_build_is_not_disturbed(bench: Bench) -> None:
    """Nothing of that repository is removed meanwhile, but afterwards."""

    async def test(bench: Bench) -> None:
        repo = bench.add()
        await bench.sync(repo)
        await bench.disks.release((await bench.lease(repo))["id"])
        advance(repo)
        await bench.sync(repo)
        await bench.disks.release((await bench.lease(repo))["id"])
        bench.builder.gate = asyncio.Event()
        asked = asyncio.create_task(bench.lease(repo, form=DiskForm.EXT4))
        await until(lambda: bench.builder.running)
        bench.settings = WorkspaceConfig(disk_budget=1)
        await bench.disks.tidy()
        assert len(bench.commits(repo)) == 2
        bench.builder.gate.set()
        held = await asked
        await bench.disks.tidy()
        assert bench.commits(repo) == [held["commit"]]

    bench.run(test)


def test_a_generation_that_was_begun_during_a_collection_stays(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """It had no image when the collection looked, and has one before that acts."""

    async def test(bench: Bench) -> None:
        repo, other = bench.add("acme/a"), bench.add("acme/b", repo_id=2)
        await bench.sync(repo)
        await bench.sync(other)
        await bench.disks.release((await bench.lease(other))["id"])
        bench.builder.late = late = asyncio.Event()
        asked = asyncio.create_task(bench.lease(repo))
        await until(lambda: bench.place(repo).generations())
        loop = asyncio.get_running_loop()

        def take(name: str, *rest: Any) -> Stock:
            if name == other.name:
                loop.call_soon_threadsafe(late.set)
                wait_until(asked.done, message="the image is there and leased")
                bench.leases.release(bench.leases.live()[0].id)
            return take_stock(name, *rest)

        monkeypatch.setattr(collector, "take_stock", take)
        await bench.disks.tidy()
        assert all(path.exists() for path in paths(await asked))
        # The next one sees it as it is.
        monkeypatch.undo()
        await bench.disks.tidy()
        assert bench.commits(repo) == [tip(repo)]

    bench.run(test)


def test_disks_of_a_repository_that_is_gone_stay_within_the_budget(bench: Bench) -> None:
    """Its leases hold; what nobody has can be used again if it comes back, and goes when room is needed."""

    async def test(bench: Bench) -> None:
        repo = bench.add()
        await bench.sync(repo)
        held = await bench.lease(repo)
        bench.disks.forget(repo)
        bench.repos = []
        await bench.disks.tidy()
        assert await bench.disks.documents() == [held]
        await bench.disks.release(held["id"])
        await bench.disks.tidy()
        assert paths(held)[0].exists()
        bench.settings = WorkspaceConfig(disk_budget=1)
        await bench.disks.tidy()
        assert bench.place(repo).generations() == []

    bench.run(test)


def test_a_purge_removes_everything_at_once(bench: Bench) -> None:
    """What is leased too; another repository's stays. Who has a drive open can still read it."""

    async def test(bench: Bench) -> None:
        repo, other = bench.add(), bench.add("acme/other", repo_id=2)
        await bench.sync(repo)
        await bench.sync(other)
        held, kept = await bench.lease(repo), await bench.lease(other)
        with paths(held)[0].open("rb") as drive:
            bench.disks.forget(repo)
            await bench.disks.delete(repo.name)
            assert drive.read().startswith(held["commit"].encode())
        assert not bench.place(repo).directory.exists()
        assert await bench.disks.documents() == [kept] and all(path.exists() for path in paths(kept))

    bench.run(test)


@pytest.mark.parametrize("place", ["names_on_disk", "take_stock", "sweep"])
def test_a_bug_in_the_tidying_stays_with_the_disks(
    bench: Bench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """The log has its traceback once, and leases go on."""

    def fail(*_: Any) -> None:
        raise KeyError("a bug")

    async def test(bench: Bench) -> None:
        repo = bench.add()
        await bench.sync(repo)
        await bench.lease(repo)
        bench.make()
        monkeypatch.setattr(collector, place, fail)
        for _ in range(2):
            await bench.disks.tidy()
        [logged] = [record for record in caplog.records if "KeyError('a bug')" in record.getMessage()]
        assert logged.exc_info
        await bench.sync(repo)
        assert await bench.lease(repo)

    bench.run(test)


def test_a_bug_in_the_check_stays_with_the_disks(
    bench: Bench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log has its traceback once, however often it is asked."""

    async def fail() -> bool:
        raise KeyError("a bug")

    async def test(bench: Bench) -> None:
        monkeypatch.setattr(bench.disks._check, "check_next", fail)
        assert [await bench.disks.check_next() for _ in range(2)] == [False, False]
        [logged] = caplog.records
        assert logged.exc_info and "KeyError('a bug')" in logged.getMessage()

    bench.run(test)


def test_an_image_of_another_version_stays_while_it_is_leased(bench: Bench) -> None:
    """An update in the middle of a lease takes nothing away from a guest; nobody else gets that image."""

    async def test(bench: Bench) -> None:
        repo = bench.add()
        await bench.sync(repo)
        held = await bench.lease(repo)
        await bench.disks.stop()
        place = bench.place(repo)
        [old] = place.images()
        place.description(old).write_text(place.describe(replace(old, version=0)))
        bench.make()
        bench.settings = WorkspaceConfig(disk_budget=1)
        await bench.disks.tidy()
        assert all(path.exists() for path in paths(held))
        bench.settings = WorkspaceConfig()
        await bench.disks.release(held["id"])
        await bench.disks.tidy()
        assert not paths(held)[0].exists()

    bench.run(test)


def test_without_the_leases_nothing_is_removed(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """A database that cannot be read does not say that nobody has leased anything."""

    async def test(bench: Bench) -> None:
        repo = bench.add()
        await bench.sync(repo)
        held = await bench.lease(repo)
        bench.settings = WorkspaceConfig(disk_budget=1)
        path, aside = bench.lab.layout.database, bench.top / "aside"
        path.rename(aside)
        path.mkdir()
        await bench.disks.tidy()
        assert "disks: removing what nobody needs failed: the database" in caplog.text
        assert all(path.exists() for path in paths(held))
        path.rmdir()
        aside.rename(path)
        await bench.disks.tidy()
        assert await bench.disks.documents() == [held] and all(path.exists() for path in paths(held))

    bench.run(test)


def test_what_is_wrong_with_one_repository_stays_with_it(
    bench: Bench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its directory cannot be read: the others are built, leased and removed, and the log says it once."""

    def take(name: str, *rest: Any) -> Stock:
        if name == NAME:
            raise PermissionError(13, "Permission denied", name)
        return take_stock(name, *rest)

    async def test(bench: Bench) -> None:
        repo, other = bench.add(), bench.add("acme/other", repo_id=2)
        await bench.sync(other)
        await bench.sync(repo)
        held = await bench.lease(repo)
        await bench.disks.release((await bench.lease(other))["id"])
        monkeypatch.setattr(collector, "take_stock", take)
        for budget in (2, 1):
            bench.settings = WorkspaceConfig(disk_budget=budget)
            await bench.disks.tidy()
        assert bench.place(other).generations() == []
        assert len([line for line in caplog.messages if f"{NAME}: looking at its disks failed" in line]) == 1
        assert await bench.disks.documents() == [held] and all(path.exists() for path in paths(held))

    bench.run(test)


def test_more_than_the_budget_is_said_when_it_is_leased(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """Once, with the setting that can be raised."""

    async def test(bench: Bench) -> None:
        repo = bench.add()
        await bench.sync(repo)
        await bench.lease(repo)
        for budget in (2, 1):
            bench.settings = WorkspaceConfig(disk_budget=budget)
            await bench.disks.tidy()
        assert len([line for line in caplog.messages if "more than [workspace] disk_budget" in line]) == 1

    bench.run(test)


def test_a_collection_looks_again_at_what_may_have_changed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refs of some repository always move; that is no reason to read the disks of all others."""
    looked: list[str] = []

    def take(name: str, *rest: Any) -> Stock:
        looked.append(name)
        return take_stock(name, *rest)

    async def test(bench: Bench) -> None:
        repo, other = bench.add(), bench.add("acme/other", repo_id=2)
        await bench.sync(repo)
        await bench.sync(other)
        await bench.lease(repo)
        held = await bench.lease(other)
        monkeypatch.setattr(collector, "take_stock", take)
        await bench.disks.tidy()
        assert sorted(looked) == sorted([repo.name, other.name])
        looked.clear()
        advance(repo)
        await bench.sync(repo)
        await until(lambda: tip(repo) in bench.commits(repo))
        await bench.disks.tidy()
        assert looked == [repo.name]
        looked.clear()
        await bench.disks.release(held["id"])
        await bench.disks.tidy()
        assert looked == [other.name]
        looked.clear()
        await bench.disks.tidy()
        assert looked == []
        monkeypatch.setattr(collector, "LOOK_EVERY", 0.0)
        await bench.disks.tidy()
        assert sorted(looked) == sorted([repo.name, other.name])

    bench.run(test)


def test_gauges_count_what_is_there(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """Images, leases, bytes on disk and the seconds of builds; the log has a line for each build."""
    caplog.set_level("INFO")

    async def test(bench: Bench) -> None:
        repo = bench.add()
        await bench.sync(repo)
        held = await bench.lease(repo)
        await bench.lease(repo, form=DiskForm.EXT4)
        await bench.disks.release((await bench.lease(repo))["id"])
        await bench.disks.tidy()
        found = {name: value for name, _, value in bench.disks.gauges()}
        assert (found["disk_images"], found["disk_leases"]) == (2, 2)
        files = [path for path in bench.lab.layout.disks.rglob("*") if path.is_file()]
        assert found["disk_image_bytes"] == sum(path.lstat().st_blocks * 512 for path in files) > 6 * BLOCK - 1
        assert 0 < found["disk_build_seconds"] < 60
        for form in ("erofs", "ext4"):
            built = f"{NAME}: built the {form} disk of main at {held['commit'][:12]} in "
            assert len([line for line in caplog.messages if line.startswith(built)]) == 1

    bench.run(test)
