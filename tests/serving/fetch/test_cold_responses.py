"""Cached responses when the disk is short: the longest unused go, what is being sent stays, and the rest is a bound."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import pytest

from appliance.core.models import Repo
from appliance.core.process.cold import open_files
from appliance.core.serving.fetch import cold_responses
from appliance.core.serving.fetch.cold_responses import ColdResponses
from appliance.core.serving.fetch.kept_responses import BLOCK
from appliance.core.serving.fetch.response_cache import ResponseCache
from tests.serving.fetch.test_cache import body, in_loop, never, producing, read

REPO = Repo(1, "acme/widgets", "https://example.com/acme/widgets", None, "cli", None, True, 0.0)


@pytest.fixture
def cache(tmp_path: Path) -> ResponseCache:
    """An empty cache with room for a megabyte."""
    made = ResponseCache(tmp_path, 2**20)
    made.start()
    return made


async def fill(cache: ResponseCache, *keys: str, pinned: bool = False) -> None:
    """One response of 1,000 bytes for each key."""
    for key in keys:
        await read(cache.get(key, REPO.id, producing(body(1000)), pinned=pinned))


def keys(cache: ResponseCache) -> list[str]:
    """What is kept."""
    return [response.key for response in cache.kept.by_use()]


def test_the_longest_unused_go_first(cache: ResponseCache) -> None:
    """Those that were made before anybody asked are the last, and what is being sent is none of them."""

    async def test() -> None:
        cold, before = ColdResponses(cache, lambda: [REPO]), time.time()
        await fill(cache, "warmed", pinned=True)
        await fill(cache, "a", "b", "c")
        await read(cache.get("a", REPO.id, never))
        sending = cache.get("b", REPO.id, never)
        assert sending is not None
        found = await cold.candidates({})
        assert [(thing.repo, thing.bytes) for thing in found] == [("acme/widgets", BLOCK)] * 3
        assert all(before <= thing.used_at <= time.time() for thing in found)
        assert len(await cold.reclaim(BLOCK + 1, {})) == 2
        assert keys(cache) == ["b", "warmed"]
        assert await read(sending) == body(1000)
        assert len(await cold.reclaim(10 * BLOCK, {})) == 2
        assert cache.bytes == 0

    in_loop(test)


def test_a_ceiling_beside_the_budget(cache: ResponseCache) -> None:
    """New responses take the place of old ones; without any room none is written, and guests get theirs directly."""

    async def test() -> None:
        await fill(cache, "a", "b")
        cache.leave_room(BLOCK + 1)
        await fill(cache, "c", "d", "e")
        assert keys(cache) == ["c", "d", "e"]
        cache.leave_room(-5 * BLOCK)
        assert cache.get("f", REPO.id, never) is None
        await read(cache.get("e", REPO.id, never))
        cache.leave_room(None)
        await fill(cache, "f")
        assert keys(cache)[-1] == "f"

    in_loop(test)


def test_they_are_looked_for_beside_the_event_loop(cache: ResponseCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """There may be twenty thousand. What changes meanwhile spoils nothing."""
    began, go_on = threading.Event(), threading.Event()

    def slowly() -> frozenset[tuple[int, int]]:
        began.set()
        assert go_on.wait(60)
        return open_files()

    async def test() -> None:
        await fill(cache, "a", "b", "c")
        monkeypatch.setattr(cold_responses, "open_files", slowly)
        reclaiming = asyncio.create_task(ColdResponses(cache, lambda: [REPO]).reclaim(10 * BLOCK, {}))
        assert await asyncio.to_thread(began.wait, 60)
        await fill(cache, "d")
        cache.kept.drop("b")
        go_on.set()
        assert len(await reclaiming) == 2
        assert keys(cache) == ["d"]

    in_loop(test)
