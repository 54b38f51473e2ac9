"""Responses whose guests have all hung up: what has not begun is given up, and few are written to their end."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from appliance.core.process.children import Children
from appliance.core.serving.fetch import response_cache, upload_pack
from appliance.core.serving.fetch.cached_response import CachedResponse
from appliance.core.serving.fetch.response_cache import Produce, ResponseCache
from appliance.core.serving.fetch.upload_pack import UploadPack
from tests.serving.fetch.test_cache import REPO, Slow, body, fill, in_loop, kept, never, producing, read, started

PART = b"p" * 10


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where the cache is."""
    return tmp_path / "responses"


def asked(cache: ResponseCache, key: str, produce: Produce, *, warming: bool = False) -> CachedResponse:
    """A response that a guest waits for, or the warmer."""
    response = cache.get(key, REPO, produce, pinned=warming)
    assert response is not None
    return response


async def begun(cache: ResponseCache, key: str, *, warming: bool = False) -> tuple[CachedResponse, Slow]:
    """A response of which there are bytes."""
    slow = Slow()
    slow.write(PART)
    response = asked(cache, key, slow, warming=warming)
    assert await response.ready_beyond(0) == len(PART)
    return response, slow


async def until_stopped(slow: Slow) -> None:
    """Wait until a response is not written any more."""
    while not slow.cancelled:
        await asyncio.sleep(0.001)


def test_what_nobody_waits_for_before_its_turn_is_given_up(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a hundred guests who hang up in the queue there is nothing left: no file, no descriptor, no upload-pack. Those
    who wait get theirs."""
    monkeypatch.setattr(upload_pack, "ENOUGH_CHILDREN", 1)
    gate, log, git = tmp_path / "gate", tmp_path / "log", tmp_path / "bin" / "git"
    os.mkfifo(gate)
    git.parent.mkdir()
    git.write_text(f"#!/bin/sh\necho >>{log}\nprintf begun\nread _ <{gate}\nprintf 0000\n")
    git.chmod(0o755)

    async def test() -> None:
        cache, lock = started(directory), os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)
        environment = {"PATH": f"{git.parent}{os.pathsep}{os.environ['PATH']}"}
        runner = UploadPack(Children(tmp_path / "children", lock), environment, 60.0)

        def asks(key: str) -> CachedResponse:
            return asked(cache, key, lambda output, on_begun: runner.write(tmp_path, b"", output, on_begun))

        first = asks("first")
        assert await first.ready_beyond(0) == 5
        descriptors = len(os.listdir("/proc/self/fd"))
        many = [asks(f"abandoned{number}") for number in range(100)]
        await asyncio.sleep(0)
        # Some of their tasks have run when their guests hang up, and some have not.
        many += [asks(f"later{number}") for number in range(5)]
        shared = [asks("shared"), asks("shared")]
        for response in [*many, shared.pop()]:
            response.close()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert len(list(directory.iterdir())) == 2
        assert len(os.listdir("/proc/self/fd")) == descriptors + 2, "the file of the one that is waited for, twice"
        again = asks("abandoned1")
        for response in (first, *shared, again):
            reading = asyncio.create_task(read(response))
            await asyncio.to_thread(gate.write_text, "go on\n")
            assert await reading == b"begun0000"
        assert log.read_text().count("\n") == 3
        os.close(lock)

    in_loop(test)


def test_one_that_its_guest_cannot_open_is_given_up(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the process has no descriptor left, the guest gets its answer from upload-pack."""

    async def test() -> None:
        cache, slow = started(directory), Slow()
        monkeypatch.setattr(ResponseCache, "_again", staticmethod(lambda _: None))
        assert cache.get("a", REPO, slow) is None
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not list(directory.iterdir())
        assert not slow.calls

    in_loop(test)


def test_few_are_written_to_their_end_for_nobody(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that were left first; the warmer and guests who wait do not count. Each that ends makes place."""
    monkeypatch.setattr(response_cache, "MOST_UNREAD", 2)

    async def test() -> None:
        cache = started(directory, budget=10 * 2**20)
        warming, warmed = await begun(cache, "warmed", warming=True)
        waiting, waited = await begun(cache, "waited")
        left = [await begun(cache, key) for key in "abcd"]
        asked(cache, "warmed", never).close()
        for response, _ in left[:3]:
            response.close()
        await until_stopped(left[2][1])
        for _, slow in left[:2]:
            slow.write(body(50))
            slow.write(b"")
        assert await read(asked(cache, "a", never)) == await read(asked(cache, "b", never)) == PART + body(50)
        left[3][0].close()
        for slow in (warmed, waited, left[3][1]):
            slow.write(body(60))
            slow.write(b"")
        assert await read(waiting) == await read(warming) == await read(asked(cache, "d", never)) == PART + body(60)
        assert await kept(cache, "warmed", "waited", *"abcd") == ["warmed", "waited", "a", "b", "d"]
        assert [slow.cancelled for _, slow in left] == [False, False, True, False]

    in_loop(test)


def test_none_is_written_for_nobody_on_a_low_disk(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither one that is left then, nor one that was left before; guests who wait get theirs to the end."""

    async def test() -> None:
        cache = started(directory)
        waiting, waited = await begun(cache, "waited")
        before, earlier = await begun(cache, "before")
        after, later = await begun(cache, "after")
        before.close()
        monkeypatch.setattr(cache, "disk_is_low", lambda: True)
        after.close()
        await until_stopped(later)
        assert not earlier.cancelled
        earlier.write(PART)
        await until_stopped(earlier)
        waited.write(body(50))
        waited.write(b"")
        assert await read(waiting) == PART + body(50)
        assert not list(directory.iterdir())

    in_loop(test)


def test_what_no_guest_will_ask_for_again_ends_with_its_last_reader(directory: Path) -> None:
    """The response of a repository that was dropped while it was being written."""

    async def test() -> None:
        cache = started(directory)
        response, slow = await begun(cache, "a")
        cache.evict(REPO)
        response.close()
        await until_stopped(slow)
        await fill(cache, "a")
        assert await read(asked(cache, "a", producing(body(10)))) == body(1000, b"a")

    in_loop(test)
