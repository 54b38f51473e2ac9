"""The reported head: the newest audit event that was reported to anybody, in its own file beside the database.

SQLite accepts a database that was deleted and recreated, replaced by an older copy, or that lost its WAL. This file
reveals such a loss, because the log must contain the event that the file names.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import NamedTuple

from appliance.core.store.database import StoreError

log = logging.getLogger(__name__)


class Head(NamedTuple):
    """An event of the audit log."""

    id: int
    hash: str


LOST = Head(0, "0" * 64)
"""An event that no log contains: the database was lost, and nobody knows how many events it had."""


class HeadUnreadable(StoreError):
    """The file cannot be read, such as by a process that is out of descriptors: nobody knows what the log lacks."""


class ToldHead:
    """The file at `path`: one line of fixed length, `ID HASH`.

    It is written in place and not synced. A kill cannot tear a line that short. A power cut may leave an older line,
    but the log contains that event too: the file may be behind the log, never ahead of it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> Head | None:
        """The reported head, or None if nothing was reported yet; LOST if the file is invalid.

        Raises HeadUnreadable.
        """
        try:
            return self._read()
        except OSError as error:
            # A guest whose push is refused sees this, so it names no directory.
            raise HeadUnreadable(
                f"the newest reported event of the audit log cannot be read from {self.path.name}: {error.strerror}",
                hint="pushes are refused until it can be read",
            ) from error

    def mark_lost(self) -> None:
        """Records LOST unless an event was reported already. Raises OSError."""
        if self._read() is None:
            self.write(LOST)

    def _read(self) -> Head | None:
        try:
            text = self.path.read_text(encoding="ascii", errors="replace")
        except FileNotFoundError:
            return None
        if not text.strip():
            return None
        fields = text.split()
        if len(fields) == 2 and fields[0].isdigit() and len(fields[1]) == len(LOST.hash):
            return Head(int(fields[0]), fields[1])
        return LOST

    def write(self, head: Head) -> None:
        """Records `head` as the newest reported event. Raises OSError."""
        created = not self.path.exists()
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.pwrite(descriptor, f"{head.id:020d} {head.hash}\n".encode(), 0)
            if created:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def note(self, head: Head) -> None:
        """Like `write`, but only logs a failure, because the event itself is safe in the log."""
        try:
            self.write(head)
        except OSError as error:
            log.error("%s cannot be written: %s", self.path, error)
