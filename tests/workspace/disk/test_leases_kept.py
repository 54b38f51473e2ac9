"""Which disks are rebuilt when upstream moves, and which go: nothing that somebody has leased."""

from __future__ import annotations

import asyncio
import grp
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from appliance.core.config.settings import WorkspaceConfig
from appliance.core.errors import GitmirrorError
from appliance.core.store.disk_leases import FOLLOWED
from appliance.core.workspace.disk import collection, collector
from appliance.core.workspace.disk.collection import MOST_SPARE, SPARE_FOR, Stock, plan_removals, take_stock
from appliance.core.workspace.disk.images import DiskForm, DiskImage
from tests.support.generate import delete_branch
from tests.support.gitutil import wait_until
from tests.workspace.disk.leasing import (
    BLOCK,
    NAME,
    Bench,
    advance,
    benches,
    branch_off,
    fails,
    paths,
    rewrite,
    tip,
    until,
)

GIB = 2**30


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A node without repositories."""
    with benches(tmp_path) as made:
        yield made


# -- following upstream


def test_a_branch_that_somebody_asked_for_is_rebuilt_when_it_moves(bench: Bench) -> None:
    """In each form that was asked for, so that the next request builds nothing; other branches are left alone."""

    async def test(bench: Bench) -> None:
        repo = bench.add()
        branch_off(repo, "asked")
        branch_off(repo, "never-asked")
        await bench.sync(repo)
        await bench.lease(repo, branch="asked")
        await bench.lease(repo, branch="asked", form=DiskForm.EXT4)
        moved = advance(repo, "asked")
        advance(repo, "never-asked")
        await bench.sync(repo)
        await until(lambda: bench.commits(repo).count(moved) == 2)
        count = len(bench.builder.orders)
        for form in (DiskForm.EROFS, DiskForm.EXT4):
            assert (await bench.lease(repo, branch="asked", form=form))["commit"] == moved
        assert len(bench.builder.orders) == count
        assert {order.branch for order in bench.builder.orders} == {"asked"}

    bench.run(test)


def test_a_restart_goes_on_following(bench: Bench) -> None:
    """Also a branch whose lease has ended; a commit that was asked for makes nobody follow its branch."""

    async def test(bench: Bench) -> None:
        repo = bench.add()
        branch_off(repo, "asked")
        pinned = branch_off(repo, "pinned")
        await bench.sync(repo)
        await bench.disks.release((await bench.lease(repo, branch="asked"))["id"])
        await bench.lease(repo, commit=pinned)
        await bench.disks.stop()
        moved = advance(repo, "asked")
        advance(repo, "pinned")
        bench.make()
        await bench.sync(repo)
        await until(lambda: moved in bench.commits(repo))
        await bench.disks.stop()
        assert {order.branch for order in bench.builder.orders[2:]} == {"asked"}

    bench.run(test)


def test_a_repository_that_is_disabled_and_enabled_again_is_followed(bench: Bench) -> None:
    """Also when what ran for it before has not ended yet."""

    async def test(bench: Bench) -> None:
        repo = bench.add()
        await bench.sync(repo)
        await bench.lease(repo)
        bench.builder.gate = asyncio.Event()
        moved = advance(repo)
        await bench.sync(repo)
        await until(lambda: bench.builder.running)
        bench.disks.forget(repo)
        bench.disks.refresh(repo)
        bench.builder.gate.set()
        await until(lambda: moved in bench.commits(repo))
        assert (await bench.lease(repo))["commit"] == moved

    bench.run(test)


def test_a_branch_is_followed_for_a_week(bench: Bench) -> None:
    """After that, its next tip is built when somebody asks again."""

    async def test(bench: Bench) -> None:
        repo = bench.add()
        branch_off(repo, "side")
        await bench.sync(repo)
        bench.now -= FOLLOWED + 1
        await bench.lease(repo, branch="side")
        bench.now += FOLLOWED + 1
        await bench.lease(repo)
        advance(repo, "side")
        moved = advance(repo)
        await bench.sync(repo)
        await until(lambda: moved in bench.commits(repo))
        assert len(bench.builder.built("side")) == 1

    bench.run(test)


def test_branches_that_did_not_move_are_not_built_again(bench: Bench) -> None:
    """A move of one of many costs one build more than none, whichever it was."""

    async def test(bench: Bench) -> None:
        repo = bench.add()
        names = [f"b{number}" for number in range(6)]
        for name in names:
            branch_off(repo, name)
        await bench.sync(repo)
        for name in names:
            await bench.lease(repo, branch=name)
        count = len(bench.builder.orders)
        moved = advance(repo, "b0")
        await bench.sync(repo)
        await until(lambda: moved in bench.commits(repo))
        for name in names:
            assert (await bench.lease(repo, branch=name))["commit"] == tip(repo, name)
        assert len(bench.builder.orders) <= count + 2

    bench.run(test)


def test_after_a_rewrite_every_followed_branch_is_in_the_new_generation(bench: Bench) -> None:
    """Also those that did not move; the old generation goes with its last lease."""

    async def test(bench: Bench) -> None:
        repo = bench.add()
        advance(repo)
        side = branch_off(repo, "side", "main~1")
        await bench.sync(repo)
        old = [await bench.lease(repo), await bench.lease(repo, branch="side")]
        instead = rewrite(repo)
        await bench.sync(repo)
        # The old image of `side` is of the same commit.
        await until(lambda: len(bench.commits(repo)) == 4)
        assert sorted(bench.commits(repo)[-2:]) == sorted([instead, side])
        first, second = bench.place(repo).generations()
        await bench.disks.release(old[0]["id"])
        await bench.disks.tidy()
        # The image itself is of no use any more; the one that is leased holds its blob file.
        assert [path.exists() for path in (*paths(old[0]), *paths(old[1]))] == [False, True, True, True]
        await bench.disks.release(old[1]["id"])
        await bench.disks.tidy()
        assert bench.place(repo).generations() == [second] and first < second
        assert not any(path.exists() for path in paths(old[1]))

    bench.run(test)


def test_images_of_a_deleted_branch_go(bench: Bench) -> None:
    """But for the one that is leased, until it is not."""

    async def test(bench: Bench) -> None:
        repo = bench.add()
        branch_off(repo, "side")
        await bench.sync(repo)
        await bench.lease(repo)
        await bench.disks.release((await bench.lease(repo, branch="side"))["id"])
        advance(repo, "side")
        await bench.sync(repo)
        held = await bench.lease(repo, branch="side")
        await bench.disks.tidy()
        assert len(bench.commits(repo)) == 3
        delete_branch(Path(repo.url), "side")
        await bench.sync(repo)
        # The builder is asked about the branch that is left, and begins a new generation.
        await until(lambda: bench.place(repo).generations()[1:])
        await until(lambda: len(bench.commits(repo)) == 4)
        await bench.disks.tidy()
        assert sorted(bench.commits(repo)) == sorted([tip(repo), tip(repo), held["commit"]])
        assert all(path.exists() for path in paths(held))
        await bench.disks.release(held["id"])
        await bench.disks.tidy()
        assert held["commit"] not in bench.commits(repo)

    bench.run(test)


def test_a_repository_that_nobody_leases_costs_nothing(bench: Bench) -> None:
    """No build, no directory."""

    async def test(bench: Bench) -> None:
        repo = bench.add()
        for _ in range(3):
            advance(repo)
            await bench.sync(repo)
        await bench.disks.tidy()
        await bench.disks.stop()
        assert bench.builder.orders == [] and not bench.lab.layout.disks.exists()

    bench.run(test)


# -- what goes


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


def test_what_a_kill_left_is_swept_at_the_start(bench: Bench) -> None:
    """Half an image, an image without its description, a generation that was begun, one that was being removed."""

    async def test(bench: Bench) -> None:
        repo = bench.add()
        await bench.sync(repo)
        held = await bench.lease(repo)
        await bench.disks.stop()
        place = bench.place(repo)
        [number] = place.generations()
        images = place.generation(number) / "images"
        (images / "half.new").write_bytes(b"x")
        (images / ".description.json.1.new").write_bytes(b"x")
        (images / "no-description.erofs").write_bytes(b"x")
        (images / "broken.json").write_text("{")
        (place.generation(number + 1) / "images").mkdir(parents=True)
        (place.generation(number + 1) / "data").write_bytes(b"x")
        place.generation(number + 2).mkdir()
        shutil.copytree(place.generation(number), place.directory / ".gone-4-abcd")
        bench.make()
        await bench.disks.tidy()
        assert {path.name for path in place.directory.iterdir()} == {str(number)}
        tree = paths(held)[0]
        assert {path.name for path in images.iterdir()} == {tree.name, tree.with_suffix(".json").name}

    bench.run(test)


def test_what_a_first_build_left_is_swept(bench: Bench) -> None:
    """Though nobody asks again for a disk of that repository: the budget does not count what is no generation."""

    async def test(bench: Bench) -> None:
        repo = bench.add()
        await bench.sync(repo)
        directory = bench.place(repo).directory
        for left in ("1.new/images/half", "scratch/objects/pack/x"):
            (directory / left).parent.mkdir(parents=True)
            (directory / left).write_bytes(b"x")
        bench.builder.gate = asyncio.Event()
        asked = asyncio.create_task(bench.lease(repo))
        await until(lambda: bench.builder.running)
        await bench.disks.tidy()
        # While a build runs, they may be its own.
        assert {path.name for path in directory.iterdir()} == {"1.new", "scratch"}
        bench.builder.error = GitmirrorError("the disk cannot be built")
        bench.builder.gate.set()
        await fails(asked, GitmirrorError)
        await bench.disks.tidy()
        assert list(directory.iterdir()) == []

    bench.run(test)


@pytest.mark.parametrize("how", ["purge", "budget", "clock"])
def test_the_path_of_a_drive_never_comes_back(bench: Bench, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """A platform that kept it beyond the lease finds nothing there, and never other bytes."""

    async def test(bench: Bench) -> None:
        repo = bench.add()
        await bench.sync(repo)
        before = await bench.lease(repo)
        if how == "clock":
            # Set back in the middle of it, with another generation beside the first one.
            monkeypatch.setattr(time, "time_ns", lambda: 0)
            instead = advance(repo)
            bench.private = True
            await bench.sync(repo)
            after = await bench.lease(repo)
            assert after["commit"] == instead
        else:
            await bench.disks.release(before["id"])
            if how == "purge":
                await bench.disks.delete(repo.name)
            else:
                bench.settings = WorkspaceConfig(disk_budget=1)
                await bench.disks.tidy()
            assert bench.place(repo).generations() == []
            bench.builder.orders.clear()
            bench.make()
            await bench.sync(repo)
            after = await bench.lease(repo)
        assert not set(paths(before)) & set(paths(after))
        numbers = [int(path[0].parent.parent.name) for path in (paths(before), paths(after))]
        assert numbers == sorted(numbers)

    bench.run(test)


DAMAGE: dict[str, Callable[[dict[str, Any]], object]] = {
    "a key with a wrong bit": lambda whole: {"fobm" if key == "form" else key: value for key, value in whole.items()},
    "a key too few": lambda whole: {key: whole[key] for key in whole if key != "version"},
    "a list": lambda whole: [whole],
    "a number": lambda _: 7,
    "an unhashable commit": lambda whole: whole | {"commit": [whole["commit"]]},
    "a time in words": lambda whole: whole | {"made_at": "now"},
    "no time": lambda whole: whole | {"made_at": float("nan")},
    "a size that is none": lambda whole: whole | {"size": None},
    "a negative size": lambda whole: whole | {"data_size": -1},
    "an immense time": lambda whole: whole | {"made_at": 10**400},
    "a truth for a number": lambda whole: whole | {"version": True},
    "another form": lambda whole: whole | {"form": "eroft"},
    "a name that leads out": lambda whole: whole | {"name": "../images/" + whole["name"]},
    "a name of no file": lambda whole: whole | {"name": "\0"},
    "an empty name": lambda whole: whole | {"name": ""},
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_description_is_of_no_image(bench: Bench, damage: Callable[[dict[str, Any]], object]) -> None:
    """A disk may change any of its bits; what a guest has leased stays all the same, and others get a new image."""

    async def test(bench: Bench) -> None:
        repo = bench.add()
        await bench.sync(repo)
        held = await bench.lease(repo)
        await bench.disks.stop()
        place = bench.place(repo)
        [whole] = place.images()
        place.description(whole).write_text(json.dumps(damage(json.loads(place.describe(whole)))))
        assert place.images() == []
        bench.make()
        await bench.disks.tidy()
        assert all(path.exists() for path in paths(held))
        assert (await bench.lease(repo))["commit"] == tip(repo)

    bench.run(test)


def test_a_description_that_is_nested_too_deeply_is_of_no_image(bench: Bench) -> None:
    """The parser gives up in another way."""

    async def test(bench: Bench) -> None:
        repo = bench.add()
        await bench.sync(repo)
        await bench.lease(repo)
        place = bench.place(repo)
        [whole] = place.images()
        place.description(whole).write_text("[" * 100_000)
        assert place.images() == []

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


# -- who may read the drives


def modes(bench: Bench, document: dict[str, object]) -> dict[int, set[int]]:
    """The modes of the drives, and of the directories from `disks` down to them, each with the groups that have it."""
    drives = [Path(drive["path"]) for drive in document["drives"]]  # type: ignore[attr-defined]
    top = bench.lab.layout.disks
    directories = {parent for drive in drives for parent in drive.parents if parent == top or top in parent.parents}
    found: dict[int, set[int]] = {}
    for path in (*drives, *directories):
        found.setdefault(path.stat().st_mode & 0o7777, set()).add(path.stat().st_gid)
    return found


def test_without_a_group_only_the_services_own_may_read(bench: Bench) -> None:
    """Whatever the umask is."""
    before = os.umask(0o077)
    try:

        async def test(bench: Bench) -> None:
            repo = bench.add()
            await bench.sync(repo)
            assert modes(bench, await bench.lease(repo)) == {0o640: {os.getegid()}, 0o750: {os.getegid()}}

        bench.run(test)
    finally:
        os.umask(before)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to any group")
def test_members_of_the_group_may_read_the_drives(bench: Bench) -> None:
    """Others can only pass. Another group, or none, holds at once, also for what is leased."""
    first, second = [entry for entry in grp.getgrall() if entry.gr_gid != os.getegid()][:2]

    async def test(bench: Bench) -> None:
        repo = bench.add()
        await bench.sync(repo)
        bench.settings = WorkspaceConfig(disk_group=first.gr_name)
        held = await bench.lease(repo)
        assert modes(bench, held) == {0o640: {first.gr_gid}, 0o751: {os.getegid()}}
        bench.settings = WorkspaceConfig(disk_group=second.gr_name)
        await bench.disks.tidy()
        assert modes(bench, held)[0o640] == {second.gr_gid}
        bench.settings = WorkspaceConfig()
        await bench.disks.tidy()
        assert modes(bench, held) == {0o640: {os.getegid()}, 0o750: {os.getegid()}}

    bench.run(test)


def test_a_group_that_is_not_there_is_said(bench: Bench) -> None:
    """A drive that the VMM cannot read would only fail later."""

    async def test(bench: Bench) -> None:
        repo = bench.add()
        await bench.sync(repo)
        bench.settings = WorkspaceConfig(disk_group="no-such-group")
        with pytest.raises(Exception, match="there is no group no-such-group on this node"):
            await bench.lease(repo)
        assert bench.leases.live() == []

    bench.run(test)
