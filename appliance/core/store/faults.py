"""What SQLite's errors mean, and whether a file is damaged."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from urllib.parse import quote

BUSY_SECONDS = 30.0
"""Seconds for which everybody waits for a process that writes, before that is an error."""


def is_busy(error: Exception) -> bool:
    """Whether another process writes at this moment."""
    return _code(error) == sqlite3.SQLITE_BUSY


def is_damage(error: Exception) -> bool:
    """Whether the file is no database, or one that is not in order."""
    return _code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def is_refused(error: Exception) -> bool:
    """Whether the user may not write."""
    return _code(error) == sqlite3.SQLITE_READONLY


def _code(error: Exception) -> int:
    # Without what extended codes add.
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def fault_of_file(path: Path, check: str = "quick_check") -> str | None:
    """Reads all of a database and returns what is wrong with its structure; None if nothing is.

    `integrity_check` also compares the indices with their tables. Raises sqlite3.Error if it cannot be read.
    """
    uri = f"file:{quote(str(path))}?mode=rw"
    try:
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS)) as connection:
            found = [str(row[0]) for row in connection.execute(f"PRAGMA {check}(1)")]
    except sqlite3.Error as error:
        if is_damage(error):
            return str(error)
        raise
    return None if found == ["ok"] else " ".join(found[0].split())
