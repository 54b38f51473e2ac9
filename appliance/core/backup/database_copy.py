"""Copies the database as of one moment into one file, together with the reported head of its audit log."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

from appliance.core.layout import Layout
from appliance.core.store.chain import contains, newest_event
from appliance.core.store.database import Database, DatabaseLost, StoreError
from appliance.core.store.faults import BUSY_SECONDS, fault_of_file
from appliance.core.store.remedies import remedy
from appliance.core.store.stores import Stores
from appliance.core.store.told import Head, ToldHead

_PREFIX = "database-copy-"
_UNKNOWN_HEALTH = """UPDATE health SET cloned = 0, tip = NULL, head = NULL, verified_at = NULL, checked_at = NULL,
    damage = NULL, inspected_at = NULL, verified_whole_at = NULL,
    last_error = NULL, error_kind = NULL, retry_at = NULL, failures = 0, refs = 0, size = 0, next_due = 0,
    maintained_at = NULL"""


@contextmanager
def copied(layout: Layout) -> Iterator[Layout]:
    """Copies the database into a temporary state directory below `run`, and yields its paths for the block.

    Raises StoreError.
    """
    for left in layout.run.glob(f"{_PREFIX}*"):
        # Left by a backup that was killed.
        shutil.rmtree(left, ignore_errors=True)
    copy = Layout(Path(tempfile.mkdtemp(prefix=_PREFIX, dir=layout.run)))
    try:
        try:
            _copy(layout, copy)
        except (OSError, sqlite3.Error) as error:
            raise StoreError(
                f"the database {layout.database} cannot be copied: {error}",
                hint=f"run `doctor` to check it; the disk of {layout.state} needs free space for a second copy",
            ) from error
        yield copy
    finally:
        shutil.rmtree(copy.state, ignore_errors=True)


def _copy(layout: Layout, copy: Layout) -> None:
    # Read before the copy is made. The log only grows, so a copy that lacks this event is of a log that lost events.
    told = ToldHead(layout.audit_head).read()
    uri = f"file:{quote(str(layout.database))}?mode=rw"
    with (
        closing(sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS)) as source,
        closing(sqlite3.connect(copy.database)) as target,
    ):
        source.backup(target)
        # Makes it one file, without a write-ahead log beside it.
        target.execute("PRAGMA journal_mode = DELETE")
    with reading(copy) as stores, stores.database.reading() as connection:
        is_behind = told is not None and not contains(connection, told)
        head = told if is_behind else newest_event(connection)
    if head is not None:
        ToldHead(copy.audit_head).write(head)


@contextmanager
def reading(copy: Layout) -> Iterator[Stores]:
    """Opens the stores of a copied database. Raises StoreError."""
    database = Database(copy.database, create=False)
    try:
        yield Stores.over(database)
    finally:
        database.close()


def head_of_copy(stores: Stores) -> Head | None:
    """Returns the newest event of a copied log; None for an empty log."""
    with stores.database.reading() as connection:
        return newest_event(connection)


def has_event(stores: Stores, head: Head | None) -> bool:
    """Returns whether a copied log contains the event. Every log contains None."""
    with stores.database.reading() as connection:
        return head is None or contains(connection, head)


def require_whole(copy: Layout, layout: Layout, backups: Path, verified: Head | None) -> None:
    """Raises DatabaseLost if the copy of the database of `layout` is damaged, because it would replace sound backups.

    Its advice is to restore the last one in `backups`. The log was verified up to the event `verified` before.
    """
    if fault := fault_of_copy(copy, verified):
        error = DatabaseLost(f"the database {layout.database} is damaged, so it is not backed up: {fault}")
        error.hint = remedy(error, layout.state, str(backups))
        raise error


def fault_of_copy(copy: Layout, verified: Head | None = None) -> str | None:
    """Reads all of a copied database and returns what is wrong with it; None if nothing is.

    The chain of the log is walked from the event `verified` on, if it has that one.
    """
    try:
        if fault := fault_of_file(copy.database, "integrity_check"):
            return f"SQLite finds it damaged: {fault}"
        with reading(copy) as stores:
            known = verified if has_event(stores, verified) else None
            verdict, last = stores.audit.verify(after=known), stores.audit.last_id()
    except (sqlite3.Error, StoreError) as error:
        return f"it cannot be read: {error}"
    # A log that had already lost its end is copied faithfully. A restored serve refuses pushes as the original did.
    if verdict.broken is not None and verdict.broken <= last:
        return f"the audit log is broken at event {verdict.broken}: {verdict.reason}"
    return None


def make_ready(copy: Layout) -> None:
    """Prepares a restored database for `serve`: turns the write-ahead log on and clears what was true of its machine.

    No mirror counts as fresh or even as cloned after that, and no socket file as one that `serve` made, so that none of
    another program is removed for it. Raises StoreError.
    """
    try:
        with closing(sqlite3.connect(copy.database)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
        with reading(copy) as stores, stores.database.writing() as rows:
            rows.execute(_UNKNOWN_HEALTH)
            rows.execute("DELETE FROM guest_sockets")
        with closing(sqlite3.connect(copy.database)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        descriptor = os.open(copy.database, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"the restored database {copy.database} cannot be prepared: {error}") from error
