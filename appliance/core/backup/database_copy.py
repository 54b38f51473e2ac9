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
from appliance.core.store.database import BUSY_SECONDS, Database, StoreError
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
                hint=f"`doctor` checks it; a copy needs room for one more of it on the disk of {layout.state}",
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


def fault_of_copy(copy: Layout) -> str | None:
    """Reads all of a copied database and returns what is wrong with it; None if nothing is."""
    try:
        with closing(sqlite3.connect(copy.database)) as connection:
            found = [str(row[0]) for row in connection.execute("PRAGMA integrity_check(1)")]
        if found != ["ok"]:
            return f"SQLite finds it damaged: {found[0]}"
        with reading(copy) as stores:
            verdict, last = stores.audit.verify(), stores.audit.last_id()
    except (sqlite3.Error, StoreError) as error:
        return f"it cannot be read: {error}"
    # A log that had already lost its end is copied faithfully. A restored serve refuses pushes as the original did.
    if verdict.broken is not None and verdict.broken <= last:
        return f"the audit log is broken at event {verdict.broken}: {verdict.reason}"
    return None


def make_ready(copy: Layout) -> None:
    """Prepares a restored database for `serve`: turns the write-ahead log on and marks no mirror as fresh.

    Raises StoreError.
    """
    try:
        with closing(sqlite3.connect(copy.database)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
        with reading(copy) as stores, stores.database.writing() as rows:
            rows.execute(_UNKNOWN_HEALTH)
        with closing(sqlite3.connect(copy.database)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        descriptor = os.open(copy.database, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"the restored database {copy.database} cannot be prepared: {error}") from error
