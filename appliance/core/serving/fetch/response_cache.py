"""The response cache: each response to a fetch is a file that is written once and sent to many guests.

`git upload-pack` writes a response directly into its file. Guests are sent the file as far as it has grown, so one
miss serves everyone who sends the same fetch meanwhile. Only complete responses are kept. The cache is empty at start.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path

from appliance.core.serving.fetch.cached_response import CachedResponse, CacheResult, GrowingResponse
from appliance.core.serving.fetch.kept_responses import AT_ONCE, KeptResponses, taken_by

log = logging.getLogger(__name__)

POLL = 0.003
"""Seconds between two checks of a growing file's size, because git does not notify us when it writes."""

LOW_DISK = 2**30
"""Free bytes on disk below which no new response is stored and old ones are evicted."""

ENDING = b"0000"

MOST_UNREAD = 8
"""Responses that are written to their end although nobody reads them. Beyond it, the one that was left last is given
up: those left before it are nearer to their end, and guests that ask and hang up must not cost them what is written."""

Produce = Callable[[int, Callable[[], None]], Awaitable[None]]
"""Writes a response to a descriptor, and calls the function when it begins, until when it only waits for its turn.

Raises an exception if the response is not complete.
"""


class ResponseCache:
    """Responses below `directory`; the complete ones take at most `budget` bytes. Belongs to one event loop."""

    def __init__(self, directory: Path, budget: int) -> None:
        self._directory = directory
        self.budget = budget
        self._ceiling: int | None = None
        self._kept = KeptResponses()
        self._growing: dict[str, GrowingResponse] = {}
        self._number = 0
        self.trouble: str | None = None
        """Why no response can be stored, or None. Guests get theirs directly from upload-pack meanwhile."""
        self.counts = dict.fromkeys(CacheResult, 0)

    def start(self) -> None:
        """Empties the directory, because the responses of an earlier `serve` may be incomplete."""
        shutil.rmtree(self._directory, ignore_errors=True)
        self.look()

    def look(self) -> None:
        """Checks whether responses can be written, and creates their directory if it is missing."""
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
        problem = f"responses to guests cannot be stored in {self._directory.parent}: {error.strerror}"
        if problem != self.trouble:
            log.error("%s", problem)
        self.trouble = problem

    @property
    def bytes(self) -> int:
        """The bytes of the disk that the complete responses take."""
        return self._kept.bytes

    def gauges(self) -> Iterator[tuple[str, str, float]]:
        """The current values for /metrics: name, help text, value."""
        yield "cache_bytes", "Bytes of the disk that complete responses take in the cache.", self.bytes
        yield "cache_budget_bytes", "The most bytes that complete responses may take in the cache.", self.budget
        yield (
            "damaged_responses",
            "Cached responses thrown away because their file had changed since it was written, since the start.",
            self._kept.damaged,
        )

    async def stop(self) -> None:
        """Cancels the responses that are being written."""
        tasks = [growing.task for growing in self._growing.values() if growing.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def get(self, key: str, repo: int, produce: Produce, *, pinned: bool = False) -> CachedResponse | None:
        """The response of repository id `repo` for a key: from the cache, joined, or made by `produce`.

        None if it would have to be made and cannot be written. If its file was touched and not checked since, it is
        made again. `pinned` is for warming: such a response is not evicted by guests' traffic until `unpin`, and is not
        counted.
        """
        kept = self._kept.open(key, pin=pinned)
        if kept is not None:
            response = CachedResponse(CacheResult.HIT, *kept, None, key)
        else:
            growing, result = self._growing.get(key), CacheResult.JOINED
            if growing is None:
                if self.trouble or not self._limit or not self._has_room():
                    return None
                growing, result = self._begin(key, repo, produce), CacheResult.MISS
            if growing is None:
                return None
            if (descriptor := self._again(growing)) is None:
                self._left(growing)
                return None
            growing.pinned |= pinned
            growing.readers += 1
            response = CachedResponse(result, descriptor, None, growing, key)
        if not pinned:
            self.counts[response.way] += 1
        return response

    async def check(self, key: str) -> None:
        """Checks the response of a key if somebody touched its file, so that `get` finds it only if it is undamaged."""
        await self._kept.check(key)

    async def check_next(self) -> bool:
        """Reads a response whose digest is missing, or that is due to be read again. Returns whether there was one.

        Raises OSError.
        """
        return await self._kept.check_next()

    def give_up(self, response: CachedResponse) -> None:
        """Closes a response that is not needed any more, and stops writing it unless another guest reads it."""
        response.close()
        growing = response.growing
        if growing is not None and not growing.readers:
            self._stop(growing)

    def leave_out(self, response: CachedResponse) -> None:
        """Gives up a response that is too large to be warmed, also when it was complete before that was seen.

        What was made for warming is dropped. What a guest has asked for can be evicted like any other.
        """
        self.give_up(response)
        if response.growing is not None:
            response.growing.pinned = False
        if response.way is CacheResult.MISS:
            self._kept.drop(response.key)
        else:
            self._kept.unpin_one(response.key)

    def _left(self, growing: GrowingResponse) -> None:
        if growing.readers or growing.done:
            return
        unread = sum(not each.readers for each in self._growing.values())
        if growing.watch is None or not growing.wanted or unread > MOST_UNREAD or self.disk_is_low():
            self._stop(growing)

    def _stop(self, growing: GrowingResponse) -> None:
        """Stops writing a response, unless that has ended or is being stopped already."""
        if self._growing.get(growing.key) is growing:
            # Taken out first, so that no guest joins a response that is being cancelled.
            del self._growing[growing.key]
            if growing.task is not None:
                growing.task.cancel()

    def unpin(self, repo: int) -> None:
        """Lets the warmed responses of a repository be evicted like any others, because its tip moved."""
        self._kept.unpin(repo)
        for growing in self._growing.values():
            growing.pinned = growing.pinned and growing.repo != repo

    def evict(self, repo: int) -> None:
        """Drops all responses of a repository id. A guest that is being sent one still gets all of it."""
        self._kept.evict(repo)
        for growing in self._growing.values():
            growing.wanted = growing.wanted and growing.repo != repo

    @staticmethod
    def _again(growing: GrowingResponse) -> int | None:
        with contextlib.suppress(OSError):
            return os.dup(growing.descriptor)
        return None

    def _begin(self, key: str, repo: int, produce: Produce) -> GrowingResponse | None:
        self._number += 1
        path = self._directory / f"{self._number:x}-{key[:32]}"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        except OSError as error:
            self._complain(error)
            return None
        growing = GrowingResponse(key, repo, False, descriptor, self._left)
        self._growing[key] = growing
        growing.task = asyncio.create_task(self._grow(growing, produce), name="answer")
        # A task that is cancelled before it has run at all runs no `finally`.
        growing.task.add_done_callback(partial(self._settle, growing, path))
        return growing

    async def _grow(self, growing: GrowingResponse, produce: Produce) -> bool:
        """Has a response written. Returns whether it is complete."""

        def begin() -> None:
            growing.watch = asyncio.create_task(self._watch(growing), name="watch of an answer")

        try:
            await produce(growing.descriptor, begin)
            size = os.fstat(growing.descriptor).st_size
            return size > 4 and os.pread(growing.descriptor, 4, size - 4) == ENDING
        except Exception as error:
            log.info("a response could not be made: %s", str(error) or type(error).__name__)
            return False

    def _settle(self, growing: GrowingResponse, path: Path, task: asyncio.Task[bool]) -> None:
        """Tells the readers that a response has ended, and keeps it if it is complete."""
        if growing.watch is not None:
            growing.watch.cancel()
        whole = not task.cancelled() and task.result()
        growing.size = os.fstat(growing.descriptor).st_size
        growing.done, growing.failed = True, not whole
        growing.grown.set()
        os.close(growing.descriptor)
        current = self._growing.get(growing.key) is growing
        if current:
            del self._growing[growing.key]
        if not (whole and current and growing.wanted and self._keep(growing, path)):
            with contextlib.suppress(OSError):
                path.unlink()

    def _keep(self, growing: GrowingResponse, path: Path) -> bool:
        """Keeps a complete response if there is room for it. Returns whether it does."""
        if not self._make_room(growing.size):
            return False
        try:
            status = os.stat(path)
        except OSError:
            return False
        if status.st_size != growing.size:
            return False
        self._kept.add(growing.key, path, status, growing.repo, growing.pinned)
        return True

    async def _watch(self, growing: GrowingResponse) -> None:
        while True:
            await asyncio.sleep(POLL)
            size = os.fstat(growing.descriptor).st_size
            if size > growing.size:
                growing.size = size
                growing.grown.set()
                growing.grown = asyncio.Event()
                if not growing.readers and self.disk_is_low():
                    self._stop(growing)

    def set_budget(self, budget: int) -> None:
        """Changes the budget. Responses that no longer fit are evicted, the least recently used first."""
        self.budget = budget
        self._kept.shrink(budget)

    def leave_room(self, more: int | None) -> None:
        """Lets the responses grow by at most `more` bytes from now on, or only as `budget` says for None."""
        self._ceiling = None if more is None else max(0, self.bytes + more)

    @property
    def kept(self) -> KeptResponses:
        """The complete responses, for whoever has to make room."""
        return self._kept

    @property
    def _limit(self) -> int:
        return self.budget if self._ceiling is None else min(self.budget, self._ceiling)

    def _make_room(self, size: int) -> bool:
        """Evicts the least recently used until `size` fits and the disk is not low. Returns whether it does."""
        taken = taken_by(size)
        return taken <= self._limit // 2 and self._kept.shrink(self._limit - taken, more=1) and self._has_room()

    def _has_room(self) -> bool:
        """Evicts the least recently used while the disk is low. Returns whether responses can be written afterwards.

        Only so many at a time, because they are removed on the event loop; the next miss goes on.
        """
        for _ in range(AT_ONCE):
            if not self.disk_is_low():
                return True
            if not self._kept.drop_oldest():
                return False
        return not self.disk_is_low()

    def disk_is_low(self) -> bool:
        """Whether there is too little space on the disk to write responses."""
        try:
            status = os.statvfs(self._directory)
        except OSError:
            return True
        return status.f_bavail * status.f_frsize < LOW_DISK
