"""The response cache: answers to fetches, each a file, written once and sent to many.

An answer is written by `git upload-pack` straight into its file; guests are sent the file as far as it has grown, so
one miss serves everybody who asks for the same meanwhile. Only whole answers are kept. Empty at start.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

log = logging.getLogger(__name__)

POLL = 0.003
"""Seconds between two looks at how far a growing answer is: git writes it by itself and tells nobody."""

LOW_DISK = 2**30
"""Free bytes below which nothing new is kept and old answers go."""

ENDING = b"0000"

Produce = Callable[[int], Awaitable[None]]
"""Writes an answer to a descriptor; raises when it could not be made whole."""


class CacheResult(StrEnum):
    """How a guest got its answer."""

    HIT = "hit"
    JOINED = "joined"
    MISS = "miss"
    DIRECT = "direct"


class AnswerFailed(Exception):
    """The answer could not be made whole; what came so far ends with git's own words, if any."""


@dataclass
class _Growing:
    """An answer being written. `size` is how far it is; `done` that it ended, `failed` how it ended badly.

    `wanted` is false once nobody will ask for it again: then it is for its `readers` only.
    """

    key: str
    repo: int
    pinned: bool
    descriptor: int
    wanted: bool = True
    size: int = 0
    done: bool = False
    failed: bool = False
    readers: int = 0
    grown: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


@dataclass
class _Kept:
    path: Path
    size: int
    repo: int
    pinned: bool


@dataclass
class CachedResponse:
    """One guest's view of an answer: an open file, of which `parts` tells what may be sent."""

    way: CacheResult
    _descriptor: int
    _size: int | None
    _growing: _Growing | None

    @property
    def size(self) -> int | None:
        """Bytes in all, or None while it is being written."""
        return self._size

    async def ready_beyond(self, offset: int) -> int:
        """How many bytes there are, once that is more than `offset` or all. AnswerFailed where a bad one ends."""
        if self._growing is None:
            assert self._size is not None
            return self._size
        while self._growing.size <= offset and not self._growing.done:
            await self._growing.grown.wait()
        if self._growing.size <= offset and self._growing.failed:
            raise AnswerFailed
        return self._growing.size

    def file(self) -> int:
        """The descriptor to send from."""
        return self._descriptor

    def close(self) -> None:
        """Done with it. Who leaves early does not stop an answer that is being written."""
        os.close(self._descriptor)
        if self._growing is not None:
            self._growing.readers -= 1


class ResponseCache:
    """Answers below `directory`, at most `budget` bytes of whole ones. One event loop's; not for threads."""

    def __init__(self, directory: Path, budget: int) -> None:
        self._directory = directory
        self.budget = budget
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._growing: dict[str, _Growing] = {}
        self._number = 0
        self.bytes = 0
        self.trouble: str | None = None
        """Why no answer can be kept at all, in words; None when they can be. Guests get theirs directly meanwhile."""
        self.counts = dict.fromkeys(CacheResult, 0)

    def start(self) -> None:
        """Empties the directory: what an earlier serve kept is not known to be whole."""
        shutil.rmtree(self._directory, ignore_errors=True)
        self.look()

    def look(self) -> None:
        """Finds out whether answers can be written, and makes their directory if need be."""
        probe = self._directory / "probe"
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            probe.touch()
            probe.unlink()
        except OSError as error:
            self._complain(error)
        else:
            self.trouble = None

    def _complain(self, error: OSError) -> None:
        trouble = f"answers to guests cannot be kept in {self._directory.parent}: {error.strerror}"
        if trouble != self.trouble:
            log.error("%s", trouble)
        self.trouble = trouble

    def gauges(self) -> Iterator[tuple[str, str, float]]:
        """What /metrics tells of the cache at this moment."""
        yield "cache_bytes", "Bytes of whole answers kept.", self.bytes
        yield "cache_budget_bytes", "Most bytes of answers kept.", self.budget

    async def stop(self) -> None:
        """Ends the answers being written."""
        tasks = [growing.task for growing in self._growing.values() if growing.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def get(self, key: str, repo: int, produce: Produce, *, pinned: bool = False) -> CachedResponse | None:
        """The answer of that key: kept, joined while it is written, or made by `produce`, for repository id `repo`.

        None when it would have to be made and cannot be written here. `pinned` is for warming: such answers are not
        pushed out by guests' traffic until `unpin`, and are not counted.
        """
        answer = self._hit(key)
        if answer is not None:
            self._kept[key].pinned |= pinned
        else:
            growing, way = self._growing.get(key), CacheResult.JOINED
            if growing is None:
                if self.trouble or not self._has_room():
                    return None
                growing, way = self._begin(key, repo, produce), CacheResult.MISS
            if growing is None or (descriptor := self._again(growing)) is None:
                return None
            growing.pinned |= pinned
            growing.readers += 1
            answer = CachedResponse(way, descriptor, None, growing)
        if not pinned:
            self.counts[answer.way] += 1
        return answer

    def give_up(self, answer: CachedResponse) -> None:
        """Closes an answer that nobody will ask for any more; ends its making unless somebody else reads it."""
        answer.close()
        growing = answer._growing
        if growing is None or growing.done or growing.readers:
            return
        # Who asks all the same from here on gets one of its own.
        self._growing.pop(growing.key, None)
        if growing.task is not None:
            growing.task.cancel()

    def unpin(self, repo: int) -> None:
        """The tip of that repository moved: what was warmed for it is now as any other answer."""
        for kept in self._kept.values():
            kept.pinned = kept.pinned and kept.repo != repo
        for growing in self._growing.values():
            growing.pinned = growing.pinned and growing.repo != repo

    def evict(self, repo: int) -> None:
        """Forgets all answers of a repository id; who is being sent one gets it to its end."""
        for key in [key for key, kept in self._kept.items() if kept.repo == repo]:
            self._drop(key)
        for growing in self._growing.values():
            growing.wanted = growing.wanted and growing.repo != repo

    def _hit(self, key: str) -> CachedResponse | None:
        kept = self._kept.get(key)
        if kept is None:
            return None
        try:
            descriptor = os.open(kept.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._drop(key)
            return None
        if os.fstat(descriptor).st_size != kept.size:
            # Truncated behind our back: a miss, not a broken guest.
            os.close(descriptor)
            self._drop(key)
            return None
        self._kept.move_to_end(key)
        return CachedResponse(CacheResult.HIT, descriptor, kept.size, None)

    @staticmethod
    def _again(growing: _Growing) -> int | None:
        with contextlib.suppress(OSError):
            return os.dup(growing.descriptor)
        return None

    def _begin(self, key: str, repo: int, produce: Produce) -> _Growing | None:
        self._number += 1
        path = self._directory / f"{self._number:x}-{key[:32]}"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        except OSError as error:
            self._complain(error)
            return None
        growing = _Growing(key, repo, False, descriptor)
        self._growing[key] = growing
        growing.task = asyncio.create_task(self._grow(growing, path, produce), name="answer")
        return growing

    async def _grow(self, growing: _Growing, path: Path, produce: Produce) -> None:
        watch = asyncio.create_task(self._watch(growing))
        whole = False
        try:
            await produce(growing.descriptor)
            size = os.fstat(growing.descriptor).st_size
            whole = size > 4 and os.pread(growing.descriptor, 4, size - 4) == ENDING
        except (Exception, asyncio.CancelledError) as error:
            log.info("an answer could not be made: %s", str(error) or type(error).__name__)
        finally:
            watch.cancel()
            growing.size = os.fstat(growing.descriptor).st_size
            growing.done, growing.failed = True, not whole
            growing.grown.set()
            os.close(growing.descriptor)
            current = self._growing.get(growing.key) is growing
            if current:
                del self._growing[growing.key]
            if whole and current and growing.wanted and self._make_room(growing.size):
                self._kept[growing.key] = _Kept(path, growing.size, growing.repo, growing.pinned)
                self.bytes += growing.size
            else:
                with contextlib.suppress(OSError):
                    path.unlink()

    @staticmethod
    async def _watch(growing: _Growing) -> None:
        while True:
            await asyncio.sleep(POLL)
            size = os.fstat(growing.descriptor).st_size
            if size > growing.size:
                growing.size = size
                growing.grown.set()
                growing.grown = asyncio.Event()

    def _make_room(self, size: int) -> bool:
        """Evicts the least recently used until `size` fits the budget and the disk is not low; False: keep it not."""
        if size > self.budget // 2:
            return False
        while self.bytes + size > self.budget:
            if not self._drop_oldest():
                return False
        return self._has_room()

    def _has_room(self) -> bool:
        """Evicts the least recently used while the disk is low; whether answers can be written then."""
        while self.disk_is_low():
            if not self._drop_oldest():
                return False
        return True

    def _drop_oldest(self) -> bool:
        oldest = next((key for key, kept in self._kept.items() if not kept.pinned), None)
        if oldest is not None:
            self._drop(oldest)
        return oldest is not None

    def disk_is_low(self) -> bool:
        """Whether there is too little room on the disk to write answers at all."""
        try:
            status = os.statvfs(self._directory)
        except OSError:
            return True
        return status.f_bavail * status.f_frsize < LOW_DISK

    def _drop(self, key: str) -> None:
        kept = self._kept.pop(key)
        self.bytes -= kept.size
        with contextlib.suppress(OSError):
            kept.path.unlink()
