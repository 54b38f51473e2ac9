"""The response cache alone: only complete responses, one production for all guests, a budget, and damaged files."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path

import pytest

from appliance.core.serving.fetch import kept_responses
from appliance.core.serving.fetch import response_cache as responses
from appliance.core.serving.fetch.cached_response import AnswerFailed, CachedResponse, CacheResult
from appliance.core.serving.fetch.kept_responses import BLOCK
from appliance.core.serving.fetch.response_cache import Produce, ResponseCache

REPO, OTHER = 1, 2


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """Where the cache is."""
    yield tmp_path / "responses"


def in_loop(test: Callable[[], Awaitable[None]]) -> None:
    """Run a test's coroutine with a deadline."""

    async def bounded() -> None:
        async with asyncio.timeout(60):
            await test()

    asyncio.run(bounded())


def started(directory: Path, budget: int = 10 * BLOCK) -> ResponseCache:
    """An empty cache."""
    cache = ResponseCache(directory, budget)
    cache.start()
    return cache


def body(size: int, mark: bytes = b"x") -> bytes:
    """An answer of `size` bytes that ends as whole ones do."""
    return mark * (size - 4) + b"0000"


def producing(data: bytes) -> Produce:
    """Writes `data` in one go."""

    async def produce(output: int, on_begun: Callable[[], None]) -> None:
        on_begun()
        os.write(output, data)

    return produce


async def never(output: int, on_begun: Callable[[], None]) -> None:
    """Must not be called."""
    raise AssertionError("the answer is there already")


async def read(answer: CachedResponse | None) -> bytes:
    """All of an answer, which is closed. Raises AnswerFailed."""
    assert answer is not None
    data = b""
    try:
        while (size := await answer.ready_beyond(len(data))) > len(data):
            data += os.pread(answer.file(), size - len(data), len(data))
    finally:
        answer.close()
    return data


async def fill(cache: ResponseCache, *keys: str, size: int = 1000, repo: int = REPO, pinned: bool = False) -> None:
    """Produces responses with these keys. Each takes a block, if it is not larger."""
    for key in keys:
        await read(cache.get(key, repo, producing(body(size, key[:1].encode())), pinned=pinned))


async def kept(cache: ResponseCache, *keys: str) -> list[str]:
    """Which of the keys are cached."""
    found = []
    for key in keys:
        answer = cache.get(key, REPO, producing(b"0000"))
        assert answer is not None
        if answer.way == CacheResult.HIT:
            found.append(key)
        answer.close()
    return found


class Slow:
    """A production of a response that continues when the test says so."""

    def __init__(self) -> None:
        self.calls = 0
        self.cancelled = False
        self._more: asyncio.Queue[bytes | BaseException] = asyncio.Queue()

    async def __call__(self, output: int, on_begun: Callable[[], None]) -> None:
        self.calls += 1
        on_begun()
        try:
            while part := await self._more.get():
                if isinstance(part, BaseException):
                    raise part
                os.write(output, part)
        except asyncio.CancelledError:
            self.cancelled = True
            raise

    def write(self, data: bytes) -> None:
        """Some bytes more; none is the end."""
        self._more.put_nowait(data)

    def fail(self) -> None:
        """It ends badly."""
        self._more.put_nowait(OSError("killed"))


def test_the_first_makes_it_and_the_next_have_it(directory: Path) -> None:
    """A miss, then hits of the same bytes."""

    async def test() -> None:
        cache = started(directory)
        made = body(3000)
        assert await read(cache.get("a", REPO, producing(made))) == made
        for _ in range(2):
            answer = cache.get("a", REPO, never)
            assert answer is not None and (answer.way, answer.size) == (CacheResult.HIT, 3000)
            assert await read(answer) == made
        assert cache.counts == {CacheResult.MISS: 1, CacheResult.HIT: 2, CacheResult.JOINED: 0, CacheResult.DIRECT: 0}
        assert cache.bytes == BLOCK
        assert [each.stat().st_size for each in directory.iterdir()] == [3000]

    in_loop(test)


def test_guests_join_an_answer_that_is_being_written(directory: Path) -> None:
    """It is produced once. Each guest reads it from the beginning to the end, as it grows."""

    async def test() -> None:
        cache, slow = started(directory), Slow()
        first = cache.get("a", REPO, slow)
        slow.write(b"a" * 500)
        assert first is not None and await first.ready_beyond(0) == 500
        second = cache.get("a", REPO, never)
        assert second is not None and second.way == CacheResult.JOINED and second.size is None
        assert await second.ready_beyond(0) == 500
        readers = [asyncio.create_task(read(each)) for each in (first, second)]
        slow.write(b"b" * 500)
        slow.write(b"0000")
        slow.write(b"")
        expected = b"a" * 500 + b"b" * 500 + b"0000"
        assert await asyncio.gather(*readers) == [expected, expected]
        assert slow.calls == 1
        assert await kept(cache, "a") == ["a"]

    in_loop(test)


def test_a_guest_that_leaves_does_not_stop_it(directory: Path) -> None:
    """Also when it is the first one, and the only one."""

    async def test() -> None:
        cache, slow = started(directory), Slow()
        first = cache.get("a", REPO, slow)
        slow.write(b"a" * 500)
        assert first is not None and await first.ready_beyond(0) == 500
        first.close()
        slow.write(b"0000")
        slow.write(b"")
        assert await read(cache.get("a", REPO, never)) == b"a" * 500 + b"0000"

    in_loop(test)


@pytest.mark.parametrize("ending", ["it fails", "it stops short", "it says nothing"])
def test_a_bad_answer_is_an_error_for_all_and_is_not_kept(directory: Path, ending: str) -> None:
    """Guests that joined get the bytes so far and an error, never a regular end. The next fetch produces it anew."""

    async def test() -> None:
        cache, slow = started(directory), Slow()
        answers = [cache.get("a", REPO, slow) for _ in range(3)]
        if ending != "it says nothing":
            slow.write(b"a" * 700)
        slow.fail() if ending == "it fails" else slow.write(b"")
        for answer in answers:
            with pytest.raises(AnswerFailed):
                await read(answer)
        assert not list(directory.iterdir())
        assert cache.bytes == 0
        assert await read(cache.get("a", REPO, producing(body(100)))) == body(100)

    in_loop(test)


@pytest.mark.parametrize("harm", ["truncated", "grown", "removed", "all removed"])
def test_a_file_that_somebody_touched_is_a_miss(directory: Path, harm: str) -> None:
    """Not a broken guest: the answer is made again, and nothing is counted twice."""

    async def test() -> None:
        cache = started(directory)
        await fill(cache, "a", "b")
        [path] = [each for each in directory.iterdir() if each.read_bytes().startswith(b"a")]
        if harm == "truncated":
            os.truncate(path, 999)
        elif harm == "grown":
            path.write_bytes(path.read_bytes() + b"x")
        else:
            for each in directory.iterdir() if harm == "all removed" else [path]:
                each.unlink()
        answer = cache.get("a", REPO, producing(body(1000, b"A")))
        assert answer is not None and answer.way == CacheResult.MISS
        assert await read(answer) == body(1000, b"A")
        assert await read(cache.get("a", REPO, never)) == body(1000, b"A")
        assert cache.bytes == 2 * BLOCK

    in_loop(test)


def test_the_budget_pushes_out_what_was_not_used_for_longest(directory: Path) -> None:
    """Least recently used first, as many as it takes, and never more than the budget."""

    async def test() -> None:
        cache = started(directory, budget=4 * BLOCK)
        await fill(cache, "a", "b", "c", "d")
        assert await kept(cache, "a") == ["a"]
        await fill(cache, "e", size=BLOCK + 1)
        assert cache.bytes <= 4 * BLOCK
        assert [each.name.partition("-")[2] for each in sorted(directory.iterdir())] == ["a", "d", "e"]
        await fill(cache, "f", size=2 * BLOCK)
        assert await kept(cache, "e", "f") == ["e", "f"]
        assert cache.bytes == 4 * BLOCK

    in_loop(test)


def test_an_answer_larger_than_half_the_budget_is_sent_and_not_kept(directory: Path) -> None:
    """One clone does not cost all the others their answers."""

    async def test() -> None:
        cache = started(directory, budget=4 * BLOCK)
        await fill(cache, "a")
        assert await read(cache.get("b", REPO, producing(body(2 * BLOCK + 1)))) == body(2 * BLOCK + 1)
        assert cache.bytes == BLOCK
        assert await kept(cache, "a") == ["a"]
        assert len(list(directory.iterdir())) == 1

    in_loop(test)


def test_there_are_only_so_many_however_small(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A response of 76 bytes takes a block of the disk, and memory. The least recently used go, and none is pinned."""
    monkeypatch.setattr(kept_responses, "MOST_KEPT", 3)

    async def test() -> None:
        cache = started(directory, budget=1000 * BLOCK)
        await fill(cache, "warm", size=76, pinned=True)
        await fill(cache, "a", "b", size=76)
        assert cache.bytes == 3 * BLOCK
        assert await kept(cache, "a") == ["a"]
        await fill(cache, "c", size=76)
        assert await kept(cache, "warm", "a", "c") == ["warm", "a", "c"]
        assert len(list(directory.iterdir())) == 3
        await fill(cache, "d", "e", size=76, pinned=True)
        await fill(cache, "f", size=76)
        assert await kept(cache, "warm", "d", "e") == ["warm", "d", "e"], "there is no place for another"
        assert cache.bytes == 3 * BLOCK

    in_loop(test)


@pytest.mark.parametrize("how", ["evicted", "a smaller budget"])
def test_many_that_go_hold_up_nobody(directory: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """They are misses at once; their files are removed beside the event loop."""
    threads, remove = list[threading.Thread](), kept_responses._remove
    monkeypatch.setattr(kept_responses, "AT_ONCE", 4)

    def noted(paths: Iterable[Path]) -> None:
        threads.append(threading.current_thread())
        remove(paths)

    async def test() -> None:
        cache = started(directory, budget=100 * BLOCK)
        await fill(cache, *"abcde")
        await fill(cache, "other", repo=OTHER)
        monkeypatch.setattr(kept_responses, "_remove", noted)
        if how == "evicted":
            cache.evict(REPO)
        else:
            cache.set_budget(BLOCK)
        assert cache.bytes == BLOCK and cache.kept.by_repo() == {OTHER: BLOCK}
        assert [each.key for each in cache.kept.by_use()] == ["other"]
        while len(list(directory.iterdir())) > 1:
            await asyncio.sleep(0.001)
        assert threads and threading.main_thread() not in threads
        assert await read(cache.get("other", OTHER, never)) == body(1000, b"o")

    in_loop(test)


def test_what_is_pushed_out_is_still_sent_to_its_end(directory: Path) -> None:
    """An open answer outlives its file."""

    async def test() -> None:
        cache = started(directory, budget=4 * BLOCK)
        await fill(cache, "a")
        answer = cache.get("a", REPO, never)
        cache.evict(REPO)
        assert not list(directory.iterdir())
        assert await read(answer) == body(1000, b"a")

    in_loop(test)


def test_warmed_answers_are_not_pushed_out_by_guests(directory: Path) -> None:
    """Whether produced for warming, cached already, or in production at that time; until the tip moves."""

    async def test() -> None:
        cache, slow = started(directory, budget=4 * BLOCK), Slow()
        await fill(cache, "warm", pinned=True)
        await fill(cache, "guest's")
        cache.get("guest's", REPO, never, pinned=True).close()  # type: ignore[union-attr]
        first = cache.get("joined", REPO, slow)
        cache.get("joined", REPO, never, pinned=True).close()  # type: ignore[union-attr]
        slow.write(body(1000, b"j"))
        slow.write(b"")
        await read(first)
        await fill(cache, *"0123456789")
        assert await kept(cache, "warm", "guest's", "joined") == ["warm", "guest's", "joined"]
        assert cache.bytes <= 4 * BLOCK
        cache.unpin(OTHER)
        await fill(cache, *"0123456789")
        assert await kept(cache, "warm", "guest's", "joined") == ["warm", "guest's", "joined"]
        cache.unpin(REPO)
        await fill(cache, *"0123456789")
        assert await kept(cache, "warm", "guest's", "joined") == []

    in_loop(test)


def test_an_answer_that_outlasts_its_tip_is_not_pinned(directory: Path) -> None:
    """The tip moved while it was being produced, so it can be evicted like any other."""

    async def test() -> None:
        cache, slow = started(directory, budget=4 * BLOCK), Slow()
        answer = cache.get("late", REPO, slow, pinned=True)
        cache.unpin(REPO)
        slow.write(body(1000, b"l"))
        slow.write(b"")
        await read(answer)
        await fill(cache, *"0123456789")
        assert await kept(cache, "late") == []

    in_loop(test)


def test_warming_is_not_counted(directory: Path) -> None:
    """Hits and misses are what guests had."""

    async def test() -> None:
        cache = started(directory)
        await fill(cache, "a", pinned=True)
        await fill(cache, "a", pinned=True)
        assert set(cache.counts.values()) == {0}

    in_loop(test)


def test_warming_that_is_given_up_ends_unless_somebody_reads(directory: Path) -> None:
    """Without a reader, the production is ended and leaves nothing; with a guest, it goes on."""

    async def test() -> None:
        cache, alone, shared = started(directory), Slow(), Slow()
        warming = cache.get("alone", REPO, alone, pinned=True)
        alone.write(b"a" * 10)
        assert warming is not None and await warming.ready_beyond(0) == 10
        cache.give_up(warming)
        again = cache.get("alone", REPO, producing(body(100)))
        assert again is not None and again.way == CacheResult.MISS, "nobody joins what is being ended"
        assert await read(again) == body(100)
        assert alone.cancelled
        warming = cache.get("shared", REPO, shared, pinned=True)
        guest = cache.get("shared", REPO, never)
        assert warming is not None
        cache.give_up(warming)
        shared.write(body(50))
        shared.write(b"")
        assert await read(guest) == body(50)
        assert not shared.cancelled
        assert len(list(directory.iterdir())) == 2

    in_loop(test)


def test_what_is_too_large_to_be_warmed_is_not_kept_for_that(directory: Path) -> None:
    """Also when it was complete before that was seen. What a guest asked for stays, and goes as any other does."""

    async def test() -> None:
        cache, slow = started(directory), Slow()
        warming = cache.get("made", REPO, producing(body(100)), pinned=True)
        assert warming is not None and warming.growing is not None
        while not warming.growing.done:
            await asyncio.sleep(0)
        assert cache.bytes == BLOCK
        cache.leave_out(warming)
        assert cache.bytes == 0 and not list(directory.iterdir())
        await fill(cache, "asked")
        warming = cache.get("asked", REPO, never, pinned=True)
        assert warming is not None and warming.way == CacheResult.HIT
        cache.leave_out(warming)
        guest = cache.get("joined", REPO, slow)
        warming = cache.get("joined", REPO, never, pinned=True)
        assert warming is not None and warming.way == CacheResult.JOINED
        cache.leave_out(warming)
        slow.write(body(50))
        slow.write(b"")
        assert await read(guest) == body(50)
        assert await kept(cache, "asked", "joined") == ["asked", "joined"]
        await fill(cache, *"bcdefghijk")
        assert await kept(cache, "asked", "joined") == []

    in_loop(test)


def test_evicting_a_repository_leaves_the_others(directory: Path) -> None:
    """Cached responses are deleted at once. One in production still reaches its readers, but is not cached."""

    async def test() -> None:
        cache, slow = started(directory), Slow()
        await fill(cache, "a", pinned=True)
        await fill(cache, "b", repo=OTHER)
        growing = cache.get("c", REPO, slow)
        cache.evict(REPO)
        slow.write(body(100))
        slow.write(b"")
        assert await read(growing) == body(100)
        assert cache.bytes == BLOCK
        assert len(list(directory.iterdir())) == 1
        assert await kept(cache, "a", "c", "b") == ["b"]

    in_loop(test)


def test_a_low_disk_frees_what_it_can_and_then_makes_nothing(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Least recently used first; with nothing left to free, answers go straight to the guest. Hits stay hits."""

    async def test() -> None:
        cache = started(directory)
        await fill(cache, "a", "b", "c")
        await fill(cache, "warm", pinned=True)

        def is_low() -> bool:
            return len(list(directory.iterdir())) > 2

        monkeypatch.setattr(cache, "disk_is_low", is_low)
        await fill(cache, "d")
        assert await kept(cache, "warm", "d") == ["warm", "d"]
        assert cache.bytes == 2 * BLOCK
        monkeypatch.setattr(cache, "disk_is_low", lambda: True)
        assert cache.get("e", REPO, never) is None
        assert cache.bytes == BLOCK
        assert await read(cache.get("warm", REPO, never)) == body(1000, b"w")

    in_loop(test)


def test_a_low_disk_holds_up_nobody(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each miss frees a few, rather than one of them all."""

    async def test() -> None:
        cache = started(directory, budget=100 * BLOCK)
        await fill(cache, *(f"{number:02}" for number in range(40)))
        monkeypatch.setattr(cache, "disk_is_low", lambda: True)
        left = []
        for _ in range(2):
            assert cache.get("new", REPO, never) is None
            left.append(len(list(directory.iterdir())))
        assert left == [40 - kept_responses.AT_ONCE, 0]

    in_loop(test)


def test_the_disk_is_low_below_a_bound_or_when_it_is_gone(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the free bytes of the cache's own file system."""
    cache = started(directory)
    monkeypatch.setattr(responses, "LOW_DISK", 0)
    assert not cache.disk_is_low()
    monkeypatch.setattr(responses, "LOW_DISK", 2**62)
    assert cache.disk_is_low()
    monkeypatch.setattr(responses, "LOW_DISK", 0)
    directory.rmdir()
    assert cache.disk_is_low()


def test_it_starts_empty(directory: Path) -> None:
    """What an earlier serve left is not known to be whole."""

    async def test() -> None:
        directory.mkdir()
        (directory / "1-a").write_bytes(b"half")
        (directory / "old").mkdir()
        cache = started(directory)
        assert not list(directory.iterdir())
        assert await kept(cache, "a") == []

    in_loop(test)


def test_stopping_ends_what_is_being_made(directory: Path) -> None:
    """And tells who waits."""

    async def test() -> None:
        cache, slow = started(directory), Slow()
        answer = cache.get("a", REPO, slow)
        slow.write(b"some")
        assert answer is not None and await answer.ready_beyond(0) == 4
        await cache.stop()
        assert slow.cancelled
        with pytest.raises(AnswerFailed):
            await read(answer)
        assert not list(directory.iterdir())

    in_loop(test)


def test_no_descriptor_is_left_open(directory: Path) -> None:
    """Hits, joins, misses, failures and evictions give all of them back."""

    async def test() -> None:
        cache, slow = started(directory), Slow()
        await fill(cache, "warm up")
        before = len(os.listdir("/proc/self/fd"))
        await fill(cache, "a", "a", "b")
        answers = [cache.get("c", REPO, slow) for _ in range(5)]
        slow.fail()
        for answer in answers:
            with pytest.raises(AnswerFailed):
                await read(answer)
        cache.evict(REPO)
        assert len(os.listdir("/proc/self/fd")) == before

    in_loop(test)
