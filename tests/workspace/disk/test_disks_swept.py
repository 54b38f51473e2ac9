"""What a kill or a damaged disk leaves, and what of it goes when `serve` starts."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Callable
from typing import Any

import pytest

from appliance.core.config.settings import WorkspaceConfig
from appliance.core.errors import GitmirrorError
from tests.workspace.disk.leasing import (
    Bench,
    advance,
    fails,
    paths,
    tip,
    until,
)

GIB = 2**30


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
