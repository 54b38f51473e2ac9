"""One LFS object that is being fetched from the upstream, and the readers that wait for it."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import threading
from collections.abc import Sequence
from pathlib import Path

from appliance.core.errors import GitmirrorError, NoRoom
from appliance.core.lfs.pointers import Pointer


class Flight:
    """An object that is being fetched into a file, from which guests are sent the bytes that have arrived.

    The last byte is held back until the SHA-256 is right, so that no guest takes a wrong object for complete.
    """

    def __init__(self, repo: str, pointer: Pointer) -> None:
        self.repo = repo
        self.pointer = pointer
        self.arrived = 0
        self.is_over = False
        self.fault: GitmirrorError | None = None
        self.readers = 0
        self.task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._file: int | None = None
        # An abandoned thread must not write into another file that was opened with the same descriptor number.
        self._lock = threading.Lock()
        self._digest = hashlib.sha256()
        self._written = 0

    # For readers

    @property
    def has_begun(self) -> bool:
        """Whether bytes have arrived, or none will."""
        return self.is_over or self.arrived > 0

    async def begins(self, seconds: float) -> bool:
        """Waits up to `seconds` until bytes have arrived, or none will. Returns whether that is so."""
        try:
            async with asyncio.timeout(seconds):
                while not self.has_begun:
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True

    async def ends(self) -> None:
        """Waits for the end, good or bad."""
        while not self.is_over:
            await self._changed.wait()

    async def ready_beyond(self, offset: int) -> int:
        """Waits for bytes past `offset` that may be sent; returns the offset of their end. Raises GitmirrorError."""
        while True:
            ready = self.arrived if self.is_over else min(self.arrived, self.pointer.size - 1)
            if self.fault is not None:
                raise self.fault
            if ready > offset or self.is_over:
                return ready
            await self._changed.wait()

    def open(self) -> int:
        """A descriptor of the file as it grows; close it, and count `readers`. Raises OSError."""
        if self._file is None:
            raise OSError(errno.EBADF, "the object is not being fetched any more")
        return os.dup(self._file)

    # For the fetcher

    def start(self, path: Path) -> None:
        """Starts with an empty file at `path`, also after a failed attempt. Raises OSError."""
        self.forget()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
        self._digest, self._written = hashlib.sha256(), 0

    def forget(self) -> None:
        """Drops what a failed attempt brought, so that guests who come now wait for the bytes of the next one."""
        self.stop()
        self.arrived = 0

    def write(self, data: bytes) -> int:
        """Adds bytes, in a thread; returns how many there are now. Raises NoRoom, GitmirrorError."""
        view = memoryview(data)
        with self._lock:
            if self._file is None:
                raise GitmirrorError("the LFS object is not fetched any more")
            try:
                while view:
                    view = view[os.write(self._file, view) :]
            except OSError as error:
                raise _unwritable(error) from None
        self._digest.update(data)
        self._written += len(data)
        return self._written

    def settle(self) -> None:
        """Finishes the file, in a thread. Raises GitmirrorError if the bytes are not those of the object."""
        if self._digest.hexdigest() != self.pointer.oid:
            raise GitmirrorError("the upstream sent other bytes than those of the LFS object")
        with self._lock:
            try:
                if self._file is not None:
                    os.fsync(self._file)
            except OSError as error:
                raise _unwritable(error) from None

    def advance(self, arrived: int) -> None:
        """Notifies readers how many bytes have arrived."""
        self.arrived = arrived
        self._tell()

    def end(self, fault: GitmirrorError | None) -> None:
        """Notifies readers that the fetch has ended, with an error or without."""
        self.is_over, self.fault = True, fault
        self.stop()
        self._tell()

    def stop(self) -> None:
        """Closes the file. Those who opened it have descriptors of their own."""
        with self._lock:
            if self._file is not None:
                os.close(self._file)
                self._file = None

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _unwritable(error: OSError) -> GitmirrorError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoRoom("this node's disk has no room for LFS objects")
    return GitmirrorError(f"an LFS object cannot be written: {error.strerror}")


async def end_all(tasks: Sequence[asyncio.Task[None] | None]) -> None:
    """Cancels tasks, and waits until they have ended."""
    running = [task for task in tasks if task is not None]
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
