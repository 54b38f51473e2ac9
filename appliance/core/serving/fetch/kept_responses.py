"""The complete responses of the cache. One whose file changed after it was written is thrown away and made again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from appliance.core.process.checked_file import CHECK_EVERY, CHECK_RATE, CheckedFile, Identity, NotRight

log = logging.getLogger(__name__)

DIGEST_RATE = 64 * 2**20
"""Bytes per second when the digest of a new response is computed. Its file is still in memory, so the disk is idle."""

MOST_KEPT = 20_000
"""Responses at most, whatever their size. Each takes 1.1 kB of memory, and each is looked at when the disk is short."""
BLOCK = 4096
"""Bytes of the disk that a file takes at a time: a file system's block, in most cases."""
AT_ONCE = 32
"""Files that are removed at once on the event loop. More of them are removed in a thread, because 30,000 take 0.4 s."""


@dataclass(slots=True)
class _Entry:
    file: CheckedFile
    size: int
    repo: int
    pinned: bool
    used_at: float
    """Unix seconds."""


@dataclass(frozen=True, slots=True)
class UnusedResponse:
    """A response: its key, its file and the bytes that this takes, the repository id, and when it was last used."""

    key: str
    path: Path
    taken: int
    repo: int
    used_at: float


class KeptResponses:
    """Complete responses by key. Belongs to one event loop."""

    def __init__(self) -> None:
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        """The responses by key, the least recently used first."""
        self._without_digest: dict[str, None] = {}
        self._with_digest: OrderedDict[str, None] = OrderedDict()
        """The keys, the one whose file was read longest ago first."""
        self._by_repo = Counter[int]()
        self.bytes = 0
        """What the files take on the disk."""
        self.damaged = 0
        """How many were thrown away because their file had changed since it was written."""

    def add(self, key: str, path: Path, status: os.stat_result, repo: int, pinned: bool) -> None:
        """Stores the complete response in the file `path`, which has this `status`."""
        self._entries[key] = _Entry(CheckedFile(path, Identity.of(status)), status.st_size, repo, pinned, time.time())
        self._without_digest[key] = None
        self._count(repo, taken_by(status.st_size))

    def open(self, key: str, *, pin: bool) -> tuple[int, int] | None:
        """A descriptor of a response, and its size in bytes; None if there is no undamaged one. `pin` pins it."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        try:
            descriptor = os.open(entry.file.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._drop(key)
            return None
        if not entry.file.is_as_checked(descriptor):
            os.close(descriptor)
            self._throw_away(key, entry, "its file was changed")
            return None
        self._entries.move_to_end(key)
        entry.pinned |= pin
        entry.used_at = time.time()
        return descriptor, entry.size

    async def check(self, key: str) -> None:
        """Checks the file of a response if somebody touched it. Call this before `open`, which ignores such a file."""
        entry = self._entries.get(key)
        if entry is not None and not entry.file.is_untouched():
            with contextlib.suppress(OSError):
                await self._judge(key, entry, None)

    async def check_next(self) -> bool:
        """Computes a missing digest, or reads a file again that is due. Returns whether there was such a file.

        Raises OSError if the file cannot be opened.
        """
        key, rate = next(iter(self._without_digest), None), DIGEST_RATE
        if key is None:
            key, rate = next(iter(self._with_digest), None), CHECK_RATE
            if key is None or time.monotonic() - self._entries[key].file.checked_at < CHECK_EVERY:
                return False
        entry = self._entries[key]
        try:
            await self._judge(key, entry, rate)
        finally:
            if self._entries.get(key) is entry:
                self._without_digest.pop(key, None)
                self._with_digest[key] = None
                self._with_digest.move_to_end(key)
        return True

    async def _judge(self, key: str, entry: _Entry, rate: float | None) -> None:
        """Reads a response's file, at once or at a rate, and drops it if it is gone or damaged. Raises OSError."""
        try:
            await (entry.file.check() if rate is None else entry.file.check_slowly(rate))
        except FileNotFoundError:
            if self._entries.get(key) is entry:
                self._drop(key)
        except NotRight as error:
            self._throw_away(key, entry, str(error))

    def _throw_away(self, key: str, entry: _Entry, reason: str) -> None:
        # Every caller that waited for the check gets here.
        if self._entries.get(key) is entry:
            self.damaged += 1
            log.warning("the cached response %s was thrown away, because %s", entry.file.path.name, reason)
            self._drop(key)

    def unpin(self, repo: int) -> None:
        """Lets the pinned responses of a repository id be dropped by `drop_oldest`."""
        for entry in self._entries.values():
            entry.pinned = entry.pinned and entry.repo != repo

    def unpin_one(self, key: str) -> None:
        """Lets a response be dropped by `drop_oldest`, if it is there."""
        if (entry := self._entries.get(key)) is not None:
            entry.pinned = False

    def evict(self, repo: int) -> None:
        """Drops all responses of a repository id."""
        self._drop(*[key for key, entry in self._entries.items() if entry.repo == repo])

    def shrink(self, most_bytes: int, *, more: int = 0) -> bool:
        """Drops the least recently used that are not pinned, until they take at most `most_bytes` and `more` fit.

        Returns whether they do.
        """
        left, count, going = self.bytes, len(self._entries) + more, []
        for key, entry in self._entries.items():
            if left <= most_bytes and count <= MOST_KEPT:
                break
            if not entry.pinned:
                going.append(key)
                left -= taken_by(entry.size)
                count -= 1
        self._drop(*going)
        return left <= most_bytes and count <= MOST_KEPT

    def drop_oldest(self) -> bool:
        """Drops the least recently used response that is not pinned. Returns whether there was one."""
        oldest = next((key for key, entry in self._entries.items() if not entry.pinned), None)
        if oldest is not None:
            self._drop(oldest)
        return oldest is not None

    def by_use(self) -> Iterator[UnusedResponse]:
        """The responses of this moment, the longest unused first, and those that are pinned last.

        They may be iterated over in a thread, which takes 25 ms for MOST_KEPT.
        """
        keys, entries = list(self._entries), list(self._entries.values())
        return (
            UnusedResponse(key, entry.file.path, taken_by(entry.size), entry.repo, entry.used_at)
            for pinned in (False, True)
            for key, entry in zip(keys, entries, strict=True)
            if entry.pinned is pinned
        )

    def by_repo(self) -> Mapping[int, int]:
        """The bytes that responses take, by repository id."""
        return self._by_repo

    def drop(self, key: str) -> bool:
        """Drops a response. Returns whether it was still there."""
        if key not in self._entries:
            return False
        self._drop(key)
        return True

    def _drop(self, *keys: str) -> None:
        paths = [self._forget(key) for key in keys]
        if len(paths) <= AT_ONCE:
            _remove(paths)
        else:
            asyncio.get_running_loop().run_in_executor(None, _remove, paths)

    def _forget(self, key: str) -> Path:
        entry = self._entries.pop(key)
        self._without_digest.pop(key, None)
        self._with_digest.pop(key, None)
        self._count(entry.repo, -taken_by(entry.size))
        return entry.file.path

    def _count(self, repo: int, more: int) -> None:
        self.bytes += more
        self._by_repo[repo] += more
        if not self._by_repo[repo]:
            del self._by_repo[repo]


def taken_by(size: int) -> int:
    """The bytes of the disk that a file of `size` bytes takes. Some file systems know it only later."""
    return -(-size // BLOCK) * BLOCK


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink()
