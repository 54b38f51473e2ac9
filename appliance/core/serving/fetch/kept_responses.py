"""The complete responses of the cache. One whose file changed after it was written is thrown away and made again."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from appliance.core.process.checked_file import CHECK_EVERY, CHECK_RATE, CheckedFile, Identity, NotRight

log = logging.getLogger(__name__)

DIGEST_RATE = 64 * 2**20
"""Bytes per second when the digest of a new response is computed. Its file is still in memory, so the disk is idle."""


@dataclass
class _Entry:
    file: CheckedFile
    size: int
    repo: int
    pinned: bool
    used_at: float
    """Unix seconds."""


@dataclass(frozen=True)
class UnusedResponse:
    """A response that nobody reads: its key, its file and its size, the repository id, and when it was last used."""

    key: str
    path: Path
    size: int
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
        self.bytes = 0
        self.damaged = 0
        """How many were thrown away because their file had changed since it was written."""

    def add(self, key: str, path: Path, status: os.stat_result, repo: int, pinned: bool) -> None:
        """Stores the complete response in the file `path`, which has this `status`."""
        self._entries[key] = _Entry(CheckedFile(path, Identity.of(status)), status.st_size, repo, pinned, time.time())
        self._without_digest[key] = None
        self.bytes += status.st_size

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

    def evict(self, repo: int) -> None:
        """Drops all responses of a repository id."""
        for key in [key for key, entry in self._entries.items() if entry.repo == repo]:
            self._drop(key)

    def drop_oldest(self) -> bool:
        """Drops the least recently used response that is not pinned. Returns whether there was one."""
        oldest = next((key for key, entry in self._entries.items() if not entry.pinned), None)
        if oldest is not None:
            self._drop(oldest)
        return oldest is not None

    def by_use(self) -> Iterator[UnusedResponse]:
        """All responses, the longest unused first, and those that are pinned last. Drop none before the end."""
        for pinned in (False, True):
            for key, entry in self._entries.items():
                if entry.pinned is pinned:
                    yield UnusedResponse(key, entry.file.path, entry.size, entry.repo, entry.used_at)

    def drop(self, key: str) -> bool:
        """Drops a response. Returns whether it was still there."""
        if key not in self._entries:
            return False
        self._drop(key)
        return True

    def _drop(self, key: str) -> None:
        entry = self._entries.pop(key)
        self._without_digest.pop(key, None)
        self._with_digest.pop(key, None)
        self.bytes -= entry.size
        with contextlib.suppress(OSError):
            entry.file.path.unlink()
