"""The SQLite file: opening it, its migrations, its transactions, and readable errors.

There is one connection, used by one thread at a time; a search has one of its own while it runs. A write that waits for
another process lets readers use it meanwhile. Every write is a `BEGIN IMMEDIATE`, because the default deferred BEGIN of
a read-then-write fails at once under load ("database is locked") instead of waiting for its turn.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from appliance.core.errors import GitmirrorError, NotServing
from appliance.core.store.faults import BUSY_SECONDS, fault_of_file, is_busy, is_damage, is_refused

if TYPE_CHECKING:
    import sqlite_utils

TURN_SECONDS = 0.1
"""Seconds for which a write waits for another process before readers of this one have their turn."""


class StoreError(GitmirrorError):
    """The database cannot be read or written. Nothing was changed."""


class DatabaseLost(StoreError):
    """The file is gone or damaged: only another copy helps, not waiting or changed permissions."""


class NewerDatabase(StoreError):
    """The database is intact, but a later version wrote it: the operator started the wrong file and must be told."""


class MayNotWrite(StoreError):
    """This user is not the service's: it reads the database, and changes it only through `serve`."""

    default_exit_code = NotServing.default_exit_code


class Database:
    """The open database at `path`, migrated to this version.

    `create` creates a missing file; without it a missing file is a StoreError, because an empty registry in place of a
    lost one would silently stop serving everything. With `virtual`, an empty database in memory stands for a missing
    file, until there is one: a command then reads a node that was never used. With `patient`, a database that cannot be
    opened now is opened at its first successful use; a NewerDatabase is refused all the same.
    """

    def __init__(self, path: Path, *, create: bool = True, patient: bool = False, virtual: bool = False) -> None:
        self.path = path
        self._lock = threading.RLock()
        self._identity: tuple[int, int] | None = None
        self._connection: sqlite_utils.Database | None = None
        self._create = create
        self._virtual = virtual
        self._is_still = False
        self._is_in_memory = False
        self.damage: DatabaseLost | None = None
        """Why the file counts as damaged, since an error or `examine` showed it; cleared when the file is replaced."""
        try:
            with self._lock, self._readable_errors():
                self._open()
        except StoreError as error:
            if not patient or isinstance(error, NewerDatabase):
                raise

    def close(self) -> None:
        """Closes the connection; do not use the object afterwards."""
        with self._lock:
            if self._connection is not None:
                self._connection.conn.close()
                self._connection = None

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite_utils.Database]:
        """The connection for reads; each query sees its own moment. Raises StoreError."""
        with self._lock, self._readable_errors():
            yield self._checked()

    @contextlib.contextmanager
    def searching(self) -> Iterator[sqlite_utils.Database]:
        """A read-only connection for one long read, during which everybody else reads and writes. Raises StoreError.

        It sees everything that was committed before, and nothing of a transaction that is open in this thread.
        """
        import sqlite_utils

        with self._readable_errors():
            with self._lock:
                self._checked()
            if self._is_in_memory:
                # Its connection is the database.
                with self._lock:
                    yield self._checked()
                return
            # Opened anew each time, which takes less than a millisecond, so that it is always the file at `path`.
            with contextlib.closing(self._connect("ro")) as conn:
                yield sqlite_utils.Database(conn, execute_plugins=False)

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite_utils.Database]:
        """The connection inside one IMMEDIATE transaction, which any error rolls back whole. Raises StoreError."""
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            with self._lock, self._readable_errors():
                connection = self._checked()
                if _begin(connection.conn, may_wait=time.monotonic() < deadline):
                    try:
                        yield connection
                    except BaseException:
                        connection.rollback()
                        raise
                    connection.commit()
                    return
            # The lock is not a fair one: who gives it back and takes it at once keeps it.
            time.sleep(TURN_SECONDS / 10)

    def examine(self) -> None:
        """Checks the whole file for damage, and updates `damage`. Takes 0.1 s for 25 MB. Never raises.

        Most queries touch few pages, so without this check only some later push would find a damaged page. The check
        has a connection of its own, because nobody may wait for it.
        """
        try:
            fault = fault_of_file(self.path)
        except (sqlite3.Error, OSError):
            # The file cannot be read now, which every query reports anyway.
            return
        self.damage = _damaged(self.path, fault) if fault else None

    def _checked(self) -> sqlite_utils.Database:
        """The connection, reopened if its file is no longer the file at `path`.

        SQLite keeps writing to a file that was moved away or replaced, and those writes are lost.
        """
        # What was opened as a file that nobody writes is read anew once somebody does.
        is_stale = (self._is_still and self._has_wal()) or (self._is_in_memory and self.path.exists())
        if self._connection is None or is_stale or self._identity != _identity(self.path):
            if self._connection is not None:
                self._connection.conn.close()
                self._connection = None
            self._open()
        assert self._connection is not None
        return self._connection

    def _open(self) -> None:
        create = self._create
        self._is_in_memory = self._virtual and not self.path.exists()
        if not self._is_in_memory and not create and (what := self._what_is_wrong()):
            raise DatabaseLost(
                f"the database {self.path} {what}",
                hint=f"restore a backup: `cp BACKUP {self.path}`; until then nothing can be recorded",
            )
        if self.path.exists() and not self.path.is_file():
            raise DatabaseLost(
                f"the database {self.path} is not a file",
                hint=f"`mv {self.path} {self.path}.aside`, then restore the database",
            )
        # Read before opening, so that a file swapped in meanwhile does not count as the one that was opened.
        identity = _identity(self.path)
        # `rw` creates no file, in case it was removed since the check above.
        self._is_still = self._is_closed_to_us()
        connection = self._open_for_writing("rwc" if create else "rw")
        try:
            if self._migrate(connection) and not self._is_in_memory:
                # Anew, because SQLite 3.34 goes on with the schema that it read before a step edited it.
                connection.conn.close()
                connection = self._open_for_writing("rw")
        except BaseException:
            connection.conn.close()
            raise
        self._connection = connection
        self._identity = identity or _identity(self.path)
        # From now on, a missing file counts as lost.
        self._create = False
        self.damage = None

    def _what_is_wrong(self) -> str | None:
        """Why there is nothing to open at `path`, if that is so."""
        if not self.path.is_file():
            return "is not a file" if self.path.exists() else "is missing"
        # A copy that is just being put back is empty at first: it would be migrated under the hands of `cp`. The first
        # open is another matter, because a `serve` that starts makes its file empty, too.
        return "is empty" if self._identity and not self.path.stat().st_size else None

    def _open_for_writing(self, mode: str) -> sqlite_utils.Database:
        # Imported where a database is opened: a command that only asks `serve` knows the errors here, and would take
        # half as long again.
        import sqlite_utils

        conn = self._connect(mode)
        try:
            connection = sqlite_utils.Database(conn, execute_plugins=False)
            # FULL, so that an audit event that was reported to a guest survives a power cut, not only a kill.
            conn.execute("PRAGMA synchronous = FULL")
            conn.execute("PRAGMA foreign_keys = ON")
        except BaseException:
            conn.close()
            raise
        return connection

    def _is_closed_to_us(self) -> bool:
        """Whether nobody has the file open, and this user may not create the files that reading it then takes."""
        return not self._has_wal() and self.path.exists() and not os.access(self.path.parent, os.W_OK)

    def _has_wal(self) -> bool:
        """Whether somebody has the file open, or did not close it: SQLite then keeps a log beside it."""
        return os.path.exists(f"{self.path}-wal")

    def _connect(self, mode: str) -> sqlite3.Connection:
        uri = f"file:{quote(str(self.path))}?mode={'ro&immutable=1' if self._is_still else mode}"
        if self._is_in_memory:
            uri = "file::memory:"
        return sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)

    def _migrate(self, connection: sqlite_utils.Database) -> bool:
        """Applies the steps that are still to be applied; returns whether there were any."""
        from appliance.core.store.migrations import MIGRATIONS

        if not MIGRATIONS.pending(connection) and not self._from_the_future(connection):
            return False
        # sqlite-utils applies migrations without a lock, and switching to WAL ignores the busy timeout: of three
        # processes on a fresh file, two failed. A lock on the directory lets in one at a time.
        with contextlib.nullcontext() if self._is_in_memory else _only_one(self.path.parent):
            if self._from_the_future(connection):
                raise NewerDatabase(
                    f"the database {self.path} was written by a newer gitmirror",
                    hint="install that version again; this version would misread the database",
                )
            connection.conn.execute("PRAGMA journal_mode = WAL")
            connection.conn.execute("BEGIN IMMEDIATE")
            try:
                MIGRATIONS.apply(connection)
            except BaseException:
                connection.rollback()
                raise
            connection.commit()
        return True

    @staticmethod
    def _from_the_future(connection: sqlite_utils.Database) -> bool:
        from appliance.core.store.migrations import MIGRATIONS

        applied = {migration.name for migration in MIGRATIONS.applied(connection)}
        return bool(applied - MIGRATIONS.names)

    @contextlib.contextmanager
    def _readable_errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            if is_damage(error):
                self.damage = _damaged(self.path, str(error))
                raise self.damage from error
            if is_refused(error) and not _is_ours(self.path.parent):
                raise MayNotWrite(
                    f"this user may not write the database {self.path}",
                    hint="members of its group change the node through a running serve: start it, or run the command "
                    "with sudo",
                ) from error
            hint = (
                "check that the disk is not full, and that the file and its directory belong to the service's user: "
                f"`chown gitmirror: {self.path}*; chmod u+rw {self.path}*`"
            )
            raise StoreError(f"the database {self.path} failed: {error}", hint=hint) from error


@contextlib.contextmanager
def _only_one(directory: Path) -> Iterator[None]:
    """Waits until no other process is in such a block for the directory."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _begin(connection: sqlite3.Connection, *, may_wait: bool) -> bool:
    """Begins a transaction that writes. Returns whether it did: not if another one goes on, unless that is an error."""
    connection.execute(f"PRAGMA busy_timeout = {TURN_SECONDS * 1000:.0f}")
    try:
        connection.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as error:
        if not may_wait or not is_busy(error):
            raise
        return False
    finally:
        connection.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000:.0f}")
    return True


def _is_ours(directory: Path) -> bool:
    """Whether this process runs as the owner of a state directory, who is to write everything in it."""
    try:
        return directory.stat().st_uid == os.geteuid()
    except OSError:
        return True


def _damaged(path: Path, fault: str) -> DatabaseLost:
    return DatabaseLost(
        f"the database {path} failed: {fault}",
        hint=f"`systemctl stop gitmirror; mv {path} {path}.damaged; cp BACKUP {path}; systemctl start gitmirror`; "
        "without a backup, leave out the `cp`: the registry and the log then start empty",
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
