"""Which disks are rebuilt when upstream moves."""

from __future__ import annotations

import asyncio
from pathlib import Path

from appliance.core.store.disk_leases import FOLLOWED
from appliance.core.workspace.disk.images import DiskForm
from tests.support.generate import delete_branch
from tests.workspace.disk.leasing import (
    Bench,
    advance,
    branch_off,
    paths,
    rewrite,
    tip,
    until,
)

GIB = 2**30


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
        place = bench.place(repo)
        first = place.generations()[0]
        await until(lambda: any(each.commit == tip(repo) and each.generation > first for each in place.images()))
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
