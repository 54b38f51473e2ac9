"""Checks that a file that is written once and sent many times has not changed.

Its inode, size and times reveal every change that went through the file system, and checking them takes one system
call. A change below the file system, by a faulty disk, shows only when the file is read and its digest compared.
"""

from __future__ import annotations

import asyncio
import ctypes
import hashlib
import os
import platform
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from typing import NamedTuple

CHECK_EVERY = 6 * 3600.0
"""Seconds after which a file that nobody touched is read again."""
CHECK_RATE = 8 * 2**20
"""Bytes per second of these reads: 10 GiB take 21 minutes and half a percent of a core."""
CHUNK = 2**20
READINGS = 3
"""How many times a file is read from the beginning if it is touched meanwhile."""


class NotRight(Exception):
    """The file has changed since it was written. The message says how, as a clause without the file's path."""


class Identity(NamedTuple):
    """The attributes that change when a file is written to, replaced or renamed, or gets another mode or owner."""

    device: int
    inode: int
    size: int
    modified: int
    changed: int

    @classmethod
    def of(cls, status: os.stat_result) -> Identity:
        """The identity from the result of a stat call."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class CheckedFile:
    """The file at `path`, whose content was right when it had `identity`; None if it was not checked yet.

    `digest` is the SHA-256 of the content in hex, or its beginning; if it is None, the first reading takes it.
    """

    # The cache has up to twenty thousand of them.
    __slots__ = ("_identity", "_reading", "checked_at", "digest", "path")

    def __init__(self, path: Path, identity: Identity | None, digest: str | None = None) -> None:
        assert identity or digest
        self.path = path
        self.digest = digest
        self.checked_at = time.monotonic()
        """When it was last read or written, on the monotonic clock."""
        self._identity = identity
        self._reading: asyncio.Task[None] | None = None

    def is_as_checked(self, file: Path | int) -> bool:
        """Whether the file is untouched since it was known to be right. `file` is its path or a descriptor.

        Raises OSError.
        """
        return Identity.of(os.stat(file)) == self._identity

    def is_untouched(self) -> bool:
        """Whether the file exists and is untouched since it was known to be right."""
        try:
            return self.is_as_checked(self.path)
        except OSError:
            return False

    async def check(self) -> None:
        """Reads the file in a thread, once for all callers that wait for it.

        Raises NotRight, and OSError if the file cannot be opened.
        """
        if self._reading is None:
            self._reading = asyncio.create_task(self._verify_in(_at_once, None), name="check of a file")
            self._reading.add_done_callback(self._was_read)
        await asyncio.shield(self._reading)

    async def check_slowly(self, rate: float = CHECK_RATE) -> None:
        """Reads the file in the background, at most `rate` bytes per second. Raises NotRight, OSError."""
        await self._verify_in(_background, rate)

    def verify(self, rate: float | None = None, stop: threading.Event | None = None) -> None:
        """Reads the file and blocks, at most `rate` bytes per second, until `stop` is set. Raises NotRight, OSError."""
        pace = Pace(rate, stop or threading.Event())
        with self.path.open("rb", buffering=0) as file:
            for _ in range(READINGS):
                identity = Identity.of(os.fstat(file.fileno()))
                if self.digest is None and identity != self._identity:
                    raise NotRight("its file was changed before its digest was taken")
                digest = _digest(file, pace)
                if Identity.of(os.fstat(file.fileno())) == identity:
                    break
            else:
                raise NotRight("its file keeps changing")
        if self.digest is not None and not digest.startswith(self.digest):
            raise NotRight("its bytes are not those that were written")
        self.digest = self.digest or digest
        self._identity = identity

    async def _verify_in(self, threads: ThreadPoolExecutor, rate: float | None) -> None:
        stop = threading.Event()
        try:
            await asyncio.get_running_loop().run_in_executor(threads, self.verify, rate, stop)
        finally:
            # If the task was cancelled, this ends the thread, so that no exit waits for a large file.
            stop.set()
            self.checked_at = time.monotonic()

    def _was_read(self, reading: asyncio.Task[None]) -> None:
        self._reading = None
        if not reading.cancelled():
            # Retrieved here, because every caller that waited for it may have been cancelled.
            reading.exception()


class Stopped(Exception):
    """No caller waits for the read any more."""


class Pace:
    """Ends a read when `stop` is set, and limits it to `rate` bytes per second."""

    def __init__(self, rate: float | None, stop: threading.Event) -> None:
        self._rate = rate
        self._stop = stop
        self._due = time.monotonic()

    def keep(self, count: int) -> None:
        """Sleeps until `count` more bytes may be read. Raises Stopped."""
        if self._rate is not None:
            self._due += count / self._rate
            self._stop.wait(max(0.0, self._due - time.monotonic()))
        if self._stop.is_set():
            raise Stopped


def _digest(file: FileIO, pace: Pace) -> str:
    digest, buffer = hashlib.sha256(), bytearray(CHUNK)
    view = memoryview(buffer)
    try:
        file.seek(0)
        while count := file.readinto(buffer):
            digest.update(view[:count])
            pace.keep(count)
    except OSError as error:
        # A bad sector, for example. The file could be opened, so the error is not caused by this process.
        raise NotRight(f"its file cannot be read: {error.strerror}") from error
    return digest.hexdigest()


_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}
"""The number of ioprio_set(2), for which the C library has no function."""
_THIS_THREAD = (1, 0)
_IDLE_CLASS = 3 << 13


def use_idle_disk() -> None:
    """Gives this thread the disk only when nobody else needs it. On other architectures only `rate` limits it."""
    number = _IOPRIO_SET.get(platform.machine())
    if number is not None:
        ctypes.CDLL(None).syscall(number, *_THIS_THREAD, _IDLE_CLASS)


# Guests wait for these reads, but the loop's default threads must stay free for the database.
_at_once = ThreadPoolExecutor(2, thread_name_prefix="check")
# This thread has normal CPU priority: it holds the interpreter lock now and then, and the event loop would wait for it
# as long as the scheduler keeps an idle-priority thread waiting (docs/decisions/027-cached-files.md).
_background = ThreadPoolExecutor(1, thread_name_prefix="scrub", initializer=use_idle_disk)
