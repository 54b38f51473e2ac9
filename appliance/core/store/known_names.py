"""Names that the database knows, for a shell that completes a word: read in milliseconds, and without a trace."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

PATIENCE = 0.2
"""Seconds to wait for a lock: longer than a write takes, shorter than somebody who pressed Tab waits."""


def repo_names(database: Path) -> list[str]:
    """The registered repositories, by name; none if the database is missing or cannot be read."""
    return _names(database, "SELECT name FROM repos ORDER BY name")


def session_names(database: Path, repo: str | None) -> list[str]:
    """The sessions of a repository, or of all, the newest first; none if the database cannot be read."""
    where, values = ("WHERE repo = ?", (repo,)) if repo else ("", ())
    return _names(database, f"SELECT session FROM sessions {where} ORDER BY last_at DESC", *values)


def guest_names(database: Path) -> list[str]:
    """The known guests, by name; none if the database cannot be read."""
    return _names(database, "SELECT name FROM guests ORDER BY name")


def _names(database: Path, sql: str, *values: str) -> list[str]:
    try:
        with _reading(database) as connection:
            return [str(row[0]) for row in connection.execute(sql, values)]
    except sqlite3.Error:
        return []


@contextlib.contextmanager
def _reading(database: Path) -> Iterator[sqlite3.Connection]:
    """Opens the database so that nothing in its directory changes.

    A reader makes the files of the write-ahead log if they are missing. Without them nobody has the database open, and
    the file alone is the whole of it.
    """
    immutable = "" if os.path.exists(f"{database}-wal") else "&immutable=1"
    uri = f"file:{quote(str(database))}?mode=ro{immutable}"
    with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=PATIENCE)) as connection:
        yield connection
