"""The SQLite file: opening it, its migrations, its transactions, and its errors in words.

One connection, used by one thread at a time. Every write is a `BEGIN IMMEDIATE`: the default deferred
BEGIN of a read-then-write fails at once under load ("database is locked") without waiting for its turn.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlite_utils

from appliance.core.errors import GitmirrorError
from appliance.core.store.migrations import MIGRATIONS

BUSY_SECONDS = 30.0


class StoreError(GitmirrorError):
    """The database cannot be read or written. Nothing was changed."""


class NewerDatabase(StoreError):
    """The database is whole, but of a later version: whoever starts on it has the wrong file, and is to be told."""


class Database:
    """The open database at `path`, migrated to this version.

    `create` makes the file when it is missing; without it a missing file is a StoreError, since an
    empty registry in place of a lost one would stop serving everything without a word. `patient` opens it later, at
    the first use that succeeds, when it cannot be opened now; a NewerDatabase is refused all the same.
    """

    def __init__(self, path: Path, *, create: bool = True, patient: bool = False) -> None:
        self.path = path
        self._lock = threading.RLock()
        self._identity: tuple[int, int] | None = None
        self._connection: sqlite_utils.Database | None = None
        self._create = create
        try:
            with self._lock, self._in_words():
                self._open()
        except StoreError as error:
            if not patient or isinstance(error, NewerDatabase):
                raise

    def close(self) -> None:
        """Closes the connection; the object is not used after."""
        with self._lock:
            if self._connection is not None:
                self._connection.conn.close()
                self._connection = None

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite_utils.Database]:
        """The connection, for reads of one moment each. Raises StoreError."""
        with self._lock, self._in_words():
            yield self._checked()

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite_utils.Database]:
        """The connection inside one IMMEDIATE transaction: all of it or, on any error, nothing. Raises StoreError."""
        with self._lock, self._in_words():
            connection = self._checked()
            connection.conn.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.rollback()
                raise
            connection.commit()

    def _checked(self) -> sqlite_utils.Database:
        """The connection, if the file it has open is still the file at `path`.

        SQLite goes on writing to a file that was moved away or replaced, and what it writes is lost.
        """
        if self._connection is None or self._identity != _identity(self.path):
            if self._connection is not None:
                self._connection.conn.close()
                self._connection = None
            self._open()
        assert self._connection is not None
        return self._connection

    def _open(self) -> None:
        create = self._create
        if not create and not self.path.is_file():
            what = "is not a file" if self.path.exists() else "is missing"
            raise StoreError(
                f"the database {self.path} {what}",
                hint=f"put a backup of it back: `cp BACKUP {self.path}`; until then nothing can be recorded",
            )
        if self.path.exists() and not self.path.is_file():
            raise StoreError(
                f"the database {self.path} is not a file",
                hint=f"`mv {self.path} {self.path}.aside`, then put the database back",
            )
        # Before it is opened: one that is put in its place meanwhile must not pass for the one that was.
        identity = _identity(self.path)
        # `rw` makes none: between the look above and here it may have been taken away.
        uri = f"file:{quote(str(self.path))}?mode={'rwc' if create else 'rw'}"
        conn = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            connection = sqlite_utils.Database(conn, execute_plugins=False)
            # FULL: an audit event that was answered for survives a power cut, not only a kill.
            conn.execute("PRAGMA synchronous = FULL")
            conn.execute("PRAGMA foreign_keys = ON")
            self._migrate(connection)
        except BaseException:
            conn.close()
            raise
        self._connection = connection
        self._identity = identity or _identity(self.path)
        # From here on a file that is missing was lost.
        self._create = False

    def _migrate(self, connection: sqlite_utils.Database) -> None:
        if not MIGRATIONS.pending(connection) and not self._from_the_future(connection):
            return
        # sqlite-utils applies migrations with no lock, and switching to WAL ignores the busy timeout:
        # of three processes on a fresh file two failed. One at a time, by a lock on the directory.
        directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX)
            if self._from_the_future(connection):
                raise NewerDatabase(
                    f"the database {self.path} was written by a newer gitmirror",
                    hint="install that version again; this one would misread it",
                )
            connection.conn.execute("PRAGMA journal_mode = WAL")
            connection.conn.execute("BEGIN IMMEDIATE")
            try:
                MIGRATIONS.apply(connection)
            except BaseException:
                connection.rollback()
                raise
            connection.commit()
        finally:
            os.close(directory)

    @staticmethod
    def _from_the_future(connection: sqlite_utils.Database) -> bool:
        applied = {migration.name for migration in MIGRATIONS.applied(connection)}
        return bool(applied - MIGRATIONS.names)

    @contextlib.contextmanager
    def _in_words(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"the database {self.path} failed: {error}", hint=_mend(self.path, error)) from error


def _mend(path: Path, error: Exception) -> str:
    """What to do about a database that failed: the command for each cause that can be told."""
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return (
            f"`systemctl stop gitmirror; mv {path} {path}.damaged; cp BACKUP {path}; systemctl start gitmirror`; "
            "without a backup leave out the `cp`: the registry and the log begin anew"
        )
    return (
        "see that the disk is not full, and that the file and its directory belong to the service's user: "
        f"`chown gitmirror: {path}*; chmod u+rw {path}*`"
    )


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def rows(connection: sqlite_utils.Database, sql: str, *parameters: Any) -> list[dict[str, Any]]:
    """All rows of a query, as dictionaries."""
    return list(connection.query(sql, parameters))
