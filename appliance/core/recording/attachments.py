"""Receives the attachments of turns: files that no push carries, such as a transcript or a screenshot.

The bytes go to a file below `uploads`. When all are there, the file is synced and renamed into place, and only then
its row and an event with its digest are written, in one transaction. A kill in between leaves a file without a row,
which `sweep` removes.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import itertools
import logging
import os
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from appliance.core.config.settings import RecordingConfig
from appliance.core.errors import Forbidden, GitmirrorError, NoRoom, NotFound, TooLarge, TryLater, UsageError
from appliance.core.layout import Layout
from appliance.core.models import Caller, Repo
from appliance.core.process.disk import room_of
from appliance.core.recording.quota import Quota
from appliance.core.store.trusted_time import timestamp
from appliance.core.store.turn_details import AttachedTurn, AttachmentRow, TurnDetailStore, require_room
from appliance.core.units import format_duration, format_size, rfc3339

log = logging.getLogger(__name__)

LARGEST = 16 * 2**20
"""The most bytes of one attachment."""
OPEN_FOR = 3600.0
"""Seconds after a turn was recorded in which something may be attached to it."""
MOST_AT_ONCE = 32
"""Attachments that are received at once."""
MOST_OF_ONE = 16
"""Those of one guest, or of one address."""
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_uploads = itertools.count()
_Done = TypeVar("_Done")

RequireWritable = Callable[[Repo, str, Caller], Awaitable[None]]
"""Raises Forbidden unless a push to that session would be allowed; GitmirrorError if pushes are off."""


def is_attachment_name(name: str) -> bool:
    """Whether an attachment may have this name: 1 to 128 of A-Z a-z 0-9 . _ -, not starting with a dot."""
    return _NAME.fullmatch(name) is not None


class Upload:
    """One attachment that is being received."""

    def __init__(self, path: Path, file: int, row: Callable[[int, str], AttachmentRow], most: int) -> None:
        self.path = path
        self._file = file
        self._row = row
        self._most = most
        self._digest = hashlib.sha256()
        self._size = 0

    async def write(self, data: bytes) -> None:
        """Adds bytes. Raises TooLarge, NoRoom."""
        self._size += len(data)
        require_size(self._size)
        if self._size > self._most:
            raise _no_room()
        await _to_the_end(asyncio.to_thread(self._write, data))

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._file, view) :]
        except OSError as error:
            raise _no_room(error) from error
        self._digest.update(data)

    def complete(self) -> AttachmentRow:
        """Syncs the file; returns its row. Raises NoRoom."""
        try:
            os.fsync(self._file)
        except OSError as error:
            raise _no_room(error) from error
        return self._row(self._size, self._digest.hexdigest())


class Attachments:
    """The attachments below `layout`. `require_writable` decides who may attach; `clock` gives Unix seconds."""

    def __init__(
        self,
        layout: Layout,
        details: TurnDetailStore,
        quota: Quota,
        settings: Callable[[], RecordingConfig],
        require_writable: RequireWritable,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._layout = layout
        self._details = details
        self._quota = quota
        self._settings = settings
        self._require_writable = require_writable
        self._clock = clock
        self._receiving = Counter[str]()
        self._expected = 0
        # Held from the rename to the row, and by sweeps, which would take the file for one that a kill left.
        self._placing = asyncio.Lock()

    async def require_writable(self, repo: Repo, session: str, caller: Caller) -> None:
        """Raises Forbidden unless a guest may attach to this session now, which may end while it sends."""
        await self._require_writable(repo, session, caller)

    @contextlib.asynccontextmanager
    async def upload(
        self, repo: Repo, session: str, commit: str, name: str, caller: Caller, size: int | None
    ) -> AsyncIterator[Upload]:
        """Opens an attachment of the newest turn of `session` with `commit`; it is gone after the block unless added.

        `size` is what the guest says that it will send, or None. Raises UsageError for a name, Forbidden, NotFound,
        Conflict, TooLarge, NoRoom, TryLater.
        """
        if not is_attachment_name(name):
            raise UsageError("an attachment's name is 1 to 128 of A-Z a-z 0-9 . _ -, and does not start with a dot")
        await self.require_writable(repo, session, caller)
        turn = await self._open_turn(repo, session, commit, caller)
        require_size(size or 0)
        present = {row.name: row for row in await asyncio.to_thread(self._details.attachments, turn.id)}
        require_room(present, name, size)
        sender = caller.client if caller.guest is None else f"guest {caller.guest.name}"
        if self._receiving.total() >= MOST_AT_ONCE or self._receiving[sender] >= MOST_OF_ONE:
            raise TryLater("too many attachments are being received at once", retry_after=1)
        expected = LARGEST if size is None else size
        left = self._settings().max_bytes - self._quota.used_bytes - self._expected
        if left < (size or 1):
            raise _no_room()
        path, file = self._begin()
        self._receiving[sender] += 1
        self._expected += expected
        try:
            yield Upload(path, file, lambda size, sha256: AttachmentRow(repo.name, turn.id, name, size, sha256), left)
        finally:
            self._receiving[sender] -= 1
            # Drops those at zero, so that senders that have left take no memory.
            self._receiving += Counter()
            self._expected -= expected
            os.close(file)
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    async def _open_turn(self, repo: Repo, session: str, commit: str, caller: Caller) -> AttachedTurn:
        turn = await asyncio.to_thread(self._details.turn_of, repo.name, session, commit)
        if turn is None:
            raise NotFound(f"the session {session} has no turn with the commit {commit}", hint="push it first")
        if turn.guest != caller.guest_name:
            raise Forbidden("this turn was recorded by another guest")
        if self._clock() - timestamp(turn.at) > OPEN_FOR:
            raise Forbidden(f"this turn was recorded more than {format_duration(OPEN_FOR)} ago")
        return turn

    def _begin(self) -> tuple[Path, int]:
        room = room_of(self._layout.run)
        if room is not None and room.is_full:
            raise _no_room(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        path = self._layout.uploads / f"{os.getpid()}-{next(_uploads)}"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return path, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _no_room(error) from error

    async def add(self, upload: Upload, session: str, commit: str, caller: Caller) -> bool:
        """Adds an attachment whose bytes are all there; returns False if the turn had it before.

        To the end, even if the guest hangs up. Raises Conflict, NoRoom, StoreError.
        """
        return await _to_the_end(self._add(upload, session, commit, caller))

    async def _add(self, upload: Upload, session: str, commit: str, caller: Caller) -> bool:
        row = await asyncio.to_thread(upload.complete)
        async with self._placing:
            try:
                await asyncio.to_thread(self._place, upload.path, row)
                is_new = await asyncio.to_thread(
                    self._details.attach, row, session, commit, rfc3339(self._clock()), caller.client, caller.guest_name
                )
            except OSError as error:
                raise _no_room(error) from error
            except GitmirrorError:
                await asyncio.to_thread(self._remove_unwanted, row)
                raise
        if is_new:
            self._quota.used_bytes += row.size
        return is_new

    def _place(self, path: Path, row: AttachmentRow) -> None:
        """Puts a synced file in its place. Every directory on the way is synced too. Raises OSError."""
        place = self._layout.attachments / row.path
        place.parent.mkdir(parents=True, exist_ok=True)
        path.rename(place)
        for directory in (place.parent, *place.parent.parents):
            _sync(directory)
            if directory == self._layout.state:
                break

    def _remove_unwanted(self, row: AttachmentRow) -> None:
        """Removes a file that was put in place, unless the turn has its bytes under another name."""
        with contextlib.suppress(OSError, GitmirrorError):
            if all(other.sha256 != row.sha256 for other in self._details.attachments(row.turn_id)):
                place = self._layout.attachments / row.path
                place.unlink(missing_ok=True)
                place.parent.rmdir()

    async def sweep(self, repo: str | None = None) -> None:
        """Removes files that belong to no turn, of one repository if it is given; otherwise such notes too.

        Raises StoreError.
        """
        async with self._placing:
            if repo is None:
                await asyncio.to_thread(self._details.drop_orphans)
            await asyncio.to_thread(self._remove_others, repo)

    def _remove_others(self, repo: str | None) -> None:
        top = self._layout.attachments / (repo or "")
        if not top.is_dir():
            return
        wanted = {self._layout.attachments / row.path for row in self._details.all_attachments(repo)}
        for directory, below, names in os.walk(top, topdown=False):
            for name in names:
                path = Path(directory, name)
                if path not in wanted:
                    with contextlib.suppress(OSError):
                        path.unlink()
            for name in below:
                # Fails for those that still hold something.
                with contextlib.suppress(OSError):
                    Path(directory, name).rmdir()
        if repo is not None:
            with contextlib.suppress(OSError):
                top.rmdir()


async def _to_the_end(work: Coroutine[Any, Any, _Done]) -> _Done:
    """Waits for `work` even if cancelled, because a thread may still use a file that would be closed meanwhile."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


def require_size(size: int) -> None:
    """Raises TooLarge."""
    if size > LARGEST:
        raise TooLarge(f"an attachment may have {format_size(LARGEST)}")


def _no_room(error: OSError | None = None) -> NoRoom:
    if error is None:
        return NoRoom("all sessions together hold as much as they may; no more is accepted until some are ended")
    log.error("an attachment cannot be written: %s", error)
    if error.errno in _FULL:
        return NoRoom("the disk of the mirror is full")
    return NoRoom("the mirror cannot write the attachment; its operator finds the reason in the log")


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
