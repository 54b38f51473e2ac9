"""The head of the audit log as it was when somebody was last told, in a file of its own beside the database.

A database that was deleted, replaced by an older copy, or lost its WAL is a valid one to SQLite. This file is how it is
noticed: the log has to contain the event that is named here.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import NamedTuple

log = logging.getLogger(__name__)


class Head(NamedTuple):
    """An event of the audit log."""

    id: int
    hash: str


LOST = Head(0, "0" * 64)
"""An event that no log contains: the database was gone, and nobody knows how far it went."""


class ToldHead:
    """The file at `path`: one line of fixed length, `ID HASH`.

    It is written in place and not synced. A kill tears no line that short, and a power cut may leave an older one,
    which the log contains too: the file may be behind the log, never ahead of it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> Head | None:
        """The head that was told, None when none was; LOST for a file that makes no sense."""
        try:
            text = self.path.read_text(encoding="ascii", errors="replace")
        except FileNotFoundError:
            return None
        except OSError as error:
            log.error("%s cannot be read: %s", self.path, error)
            return LOST
        if not text.strip():
            return None
        words = text.split()
        if len(words) == 2 and words[0].isdigit() and len(words[1]) == len(LOST.hash):
            return Head(int(words[0]), words[1])
        return LOST

    def write(self, head: Head) -> None:
        """Notes that the log went as far as `head`. Raises OSError."""
        created = not self.path.exists()
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.pwrite(descriptor, f"{head.id:020d} {head.hash}\n".encode(), 0)
            if created:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def note(self, head: Head) -> None:
        """Like `write`; what cannot be written is logged, since the event itself is safe."""
        try:
            self.write(head)
        except OSError as error:
            log.error("%s cannot be written: %s", self.path, error)
