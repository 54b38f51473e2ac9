"""Cached responses whose files somebody, or the disk, changes in place: no guest is sent one as right."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.core.process.checked_file import Identity
from appliance.core.serving.fetch import kept_responses
from appliance.core.serving.fetch.cached_response import CacheResult
from appliance.core.serving.fetch.kept_responses import BLOCK
from appliance.core.serving.fetch.response_cache import ResponseCache
from tests.conftest import WIDGETS
from tests.serving.fetch.conftest import (
    Counting,
    GatedFactory,
    contents_of,
    metric,
    wait_kept,
)
from tests.serving.fetch.test_cache import REPO, body, fill, in_loop, never, producing, read, started
from tests.support.gitutil import fsck
from tests.support.in_place import change_in_place, touch_all_but_the_content


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where the cache is."""
    return tmp_path / "responses"


def file_of(directory: Path, key: str) -> Path:
    """The file of one response."""
    [path] = directory.glob(f"*-{key}")
    return path


def damaged(cache: ResponseCache) -> float:
    """What /metrics says of it."""
    [value] = [value for name, _, value in cache.gauges() if name == "damaged_responses"]
    return value


async def take_digests(cache: ResponseCache) -> None:
    """Do what the background does until nothing is due."""
    while await cache.check_next():
        pass


@pytest.mark.parametrize("has_digest", [True, False])
@pytest.mark.parametrize("is_checked", [True, False])
def test_a_response_changed_in_place_is_made_anew(
    directory: Path, caplog: pytest.LogCaptureFixture, has_digest: bool, is_checked: bool
) -> None:
    """Same inode, size and mtime; before and after its digest was taken, checked in between or not."""

    async def test() -> None:
        cache = started(directory)
        await fill(cache, "a", "b")
        if has_digest:
            await take_digests(cache)
        change_in_place(file_of(directory, "a"))
        if is_checked:
            await cache.check("a")
        answer = cache.get("a", REPO, producing(body(1000, b"A")))
        assert answer is not None and answer.way == CacheResult.MISS
        assert await read(answer) == body(1000, b"A")
        assert await read(cache.get("a", REPO, never)) == body(1000, b"A")
        assert await read(cache.get("b", REPO, never)) == body(1000, b"b")
        assert damaged(cache) == 1
        assert cache.bytes == 2 * BLOCK
        [line] = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
        assert "thrown away" in line

    in_loop(test)


def test_a_file_that_was_only_touched_is_still_a_hit(directory: Path) -> None:
    """A new inode, mode or time with the same bytes costs one reading; without a check it is not trusted."""

    async def test() -> None:
        cache = started(directory)
        await fill(cache, "a", "b")
        await take_digests(cache)
        for key in ("a", "b"):
            touch_all_but_the_content(file_of(directory, key))
        await cache.check("a")
        assert await read(cache.get("a", REPO, never)) == body(1000, b"a")
        answer = cache.get("b", REPO, producing(body(1000, b"B")))
        assert answer is not None and answer.way == CacheResult.MISS
        answer.close()
        file_of(directory, "a").chmod(0o600)
        await cache.check("a")
        assert await read(cache.get("a", REPO, never)) == body(1000, b"a")
        assert damaged(cache) == 1

    in_loop(test)


def test_guests_who_come_together_have_it_thrown_away_once(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One line, one count, one response made anew for all of them."""

    async def test() -> None:
        cache, made = started(directory), 0
        await fill(cache, "a")
        await take_digests(cache)
        change_in_place(file_of(directory, "a"))

        async def produce(output: int, on_begun: Callable[[], None]) -> None:
            nonlocal made
            made += 1
            await producing(body(1000, b"A"))(output, on_begun)

        async def guest() -> bytes:
            await cache.check("a")
            return await read(cache.get("a", REPO, produce))

        assert set(await asyncio.gather(*(guest() for _ in range(20)))) == {body(1000, b"A")}
        assert (made, damaged(cache)) == (1, 1)
        assert len([each for each in caplog.records if "thrown away" in each.getMessage()]) == 1

    in_loop(test)


def test_the_background_finds_what_the_file_system_does_not_show(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A disk that lies touches no time. Each response is read again once in a while, the one longest unread first."""

    async def test() -> None:
        cache = started(directory)
        await fill(cache, "a", "b", "c")
        await take_digests(cache)
        assert not await cache.check_next(), "nothing is due for hours"
        path = file_of(directory, "b")
        change_in_place(path)
        # As if the change had not been told to the file system.
        cache._kept._entries["b"].file._identity = Identity.of(path.stat())
        assert await read(cache.get("b", REPO, never)) != body(1000, b"b"), "until it is read, nobody can know"
        monkeypatch.setattr(kept_responses, "CHECK_EVERY", 0.0)
        for _ in range(3):
            assert await cache.check_next()
        assert damaged(cache) == 1
        assert not path.exists()
        assert await read(cache.get("b", REPO, producing(body(1000, b"b")))) == body(1000, b"b")
        assert await read(cache.get("a", REPO, never)) == body(1000, b"a")
        assert len([each for each in caplog.records if "thrown away" in each.getMessage()]) == 1

    in_loop(test)


def test_the_background_survives_what_vanishes(directory: Path) -> None:
    """Evicted before or while it is read, or removed by hand: that is no damage."""

    async def test() -> None:
        cache = started(directory)
        await fill(cache, "a", "b", "c")
        file_of(directory, "a").unlink()
        reading = asyncio.create_task(cache.check_next())
        await asyncio.sleep(0)
        cache.evict(REPO)
        assert await reading
        assert not await cache.check_next()
        assert (damaged(cache), cache.bytes, list(directory.iterdir())) == (0, 0, [])

    in_loop(test)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["git", "http"])
def test_a_clone_gets_none_of_a_changed_response(gated: GatedFactory, tmp_path: Path, protocol: str) -> None:
    """It is changed in the middle. The next guest has what the first one had, made anew."""
    node = gated()
    serve = node.serve
    first = serve.clone(tmp_path / "first", WIDGETS, http=protocol == "http")
    wait_kept(serve)
    # The last one that was made.
    files = (serve.state / "cache" / "responses").iterdir()
    change_in_place(max(files, key=lambda each: int(each.name.partition("-")[0], 16)))
    counting = Counting(serve)
    second = serve.clone(tmp_path / "second", WIDGETS, http=protocol == "http")
    fsck(second)
    assert contents_of(second) == contents_of(first)
    assert counting.since() == {"misses": 1}
    assert metric(serve, "gitmirror_damaged_responses") == 1
    assert serve.log().count("was thrown away") == 1
    wait_kept(serve)
    third = serve.clone(tmp_path / "third", WIDGETS, http=protocol == "http")
    assert contents_of(third) == contents_of(first)
    assert counting.since() == {"hits": 1, "misses": 1}
