"""The SQLite file: migrated by whoever comes first, written whole or not at all, and never another than it was."""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from appliance.core.store import database as database_module
from appliance.core.store.database import Database, DatabaseLost, StoreError, rows
from appliance.core.store.faults import BUSY_SECONDS
from appliance.core.store.migrations import MIGRATIONS
from tests.support.serve import ROOT


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the database is."""
    return tmp_path / "gitmirror.db"


def add_row(database: Database, name: str) -> None:
    with database.writing() as connection:
        connection.execute(
            "INSERT INTO refreshes (repo, started_at, duration, result, moved) VALUES (?, 0, 0, '', '')", [name]
        )


def names(database: Database) -> list[str]:
    with database.reading() as connection:
        return [row["repo"] for row in rows(connection, "SELECT repo FROM refreshes ORDER BY id")]


def test_a_fresh_file_has_every_migration_and_writes_ahead(path: Path) -> None:
    """Readers never wait for a writer, and what was committed survives a power cut."""
    database = Database(path)
    with database.reading() as connection:
        applied = {row["name"] for row in rows(connection, "SELECT name FROM _sqlite_migrations")}
        [mode] = rows(connection, "PRAGMA journal_mode")
        [synchronous] = rows(connection, "PRAGMA synchronous")
        [keys] = rows(connection, "PRAGMA foreign_keys")
    assert applied == MIGRATIONS.names
    assert (mode["journal_mode"], synchronous["synchronous"], keys["foreign_keys"]) == ("wal", 2, 1)


def test_opening_again_changes_nothing(path: Path) -> None:
    """And keeps what is there."""
    first = Database(path)
    add_row(first, "o/r")
    first.close()
    assert names(Database(path)) == ["o/r"]


def test_a_failed_write_leaves_nothing(path: Path) -> None:
    """Whatever was raised, and the connection goes on working."""
    database = Database(path)
    with pytest.raises(ZeroDivisionError), database.writing() as connection:
        connection.execute(
            "INSERT INTO refreshes (repo, started_at, duration, result, moved) VALUES ('x', 0, 0, '', '')"
        )
        raise ZeroDivisionError
    with pytest.raises(StoreError, match="no such table"), database.writing() as connection:
        connection.execute(
            "INSERT INTO refreshes (repo, started_at, duration, result, moved) VALUES ('x', 0, 0, '', '')"
        )
        connection.execute("INSERT INTO nonsense VALUES (1)")
    add_row(database, "o/r")
    assert names(database) == ["o/r"]


def test_a_file_removed_while_open_is_noticed(path: Path) -> None:
    """SQLite goes on writing to it, and what it writes is lost."""
    database = Database(path)
    path.unlink()
    for _ in range(2):
        with pytest.raises(StoreError, match="is missing"):
            add_row(database, "lost")
    with pytest.raises(StoreError, match="is missing"), database.reading():
        pass
    assert not path.exists()


def test_a_file_replaced_while_open_is_the_one_that_is_used_from_then_on(path: Path, tmp_path: Path) -> None:
    """A backup that was put back, or a directory and then the file again: no restart is needed."""
    database = Database(path)
    add_row(database, "first")
    with database.writing() as connection:
        connection.execute("SELECT 1")
    other = tmp_path / "other.db"
    with sqlite3.connect(path) as source, sqlite3.connect(other) as target:
        source.backup(target)
    source.close()
    target.close()
    add_row(database, "not in the backup")
    for left in (path, *path.parent.glob("gitmirror.db-*")):
        left.unlink(missing_ok=True)
    path.mkdir()
    with pytest.raises(StoreError, match="is not a file"):
        names(database)
    path.rmdir()
    shutil.copy(other, path)
    assert names(database) == ["first"]
    add_row(database, "second")
    assert names(Database(path)) == ["first", "second"]


def test_a_copy_that_is_only_just_being_put_back_is_not_made_an_empty_database(path: Path) -> None:
    """Its file is empty at first, and whoever migrates it then has an empty registry in place of the one it had."""
    database = Database(path)
    add_row(database, "o/r")
    database.close()
    copy = path.read_bytes()
    path.unlink()
    path.touch()
    for _ in range(2):
        with pytest.raises(DatabaseLost, match="is empty"):
            names(database)
    assert path.stat().st_size == 0
    path.write_bytes(copy)
    assert names(database) == ["o/r"]


def test_a_reader_does_not_wait_for_a_writer_of_another_process(path: Path) -> None:
    """Status and lists work while a push holds the log."""
    database, other = Database(path), sqlite3.connect(path, isolation_level=None)
    add_row(database, "o/r")
    other.execute("BEGIN IMMEDIATE")
    other.execute("DELETE FROM refreshes")
    assert names(database) == ["o/r"]
    other.execute("ROLLBACK")
    other.close()


def test_a_writer_waits_for_its_turn(path: Path) -> None:
    """Another process that holds the file for a moment is no error."""
    database, other = Database(path), sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    waiting = threading.Event()

    def release() -> None:
        waiting.wait(60)
        other.execute("COMMIT")

    thread = threading.Thread(target=release)
    thread.start()
    threading.Timer(0.1, waiting.set).start()
    add_row(database, "o/r")
    assert waiting.is_set()
    thread.join()
    other.close()
    assert names(database) == ["o/r"]


def test_a_writer_that_waits_for_another_process_keeps_no_reader_waiting(path: Path) -> None:
    """A list or a push's checks come between, although there is one connection for all."""
    database, other = Database(path), sqlite3.connect(path, isolation_level=None)
    add_row(database, "o/r")
    other.execute("BEGIN IMMEDIATE")
    writer = threading.Thread(target=add_row, args=(database, "o/s"))
    writer.start()
    began = time.monotonic()
    while (read_for := time.monotonic() - began) < 1:
        assert names(database) == ["o/r"] and writer.is_alive()
    assert read_for < BUSY_SECONDS / 2, "a reader waited as long as the writer did"
    other.execute("ROLLBACK")
    writer.join()
    other.close()
    assert names(database) == ["o/r", "o/s"]


def test_a_writer_that_waited_long_enough_says_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In words, with a hint."""
    monkeypatch.setattr(database_module, "BUSY_SECONDS", 0.05)
    database, other = Database(path), sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="database is locked"):
        add_row(database, "o/r")
    other.close()
    add_row(database, "o/r")
    assert names(database) == ["o/r"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes every file")
def test_a_file_that_may_not_be_written_is_an_error_in_words(path: Path) -> None:
    """With what to check."""
    Database(path).close()
    path.chmod(0o400)
    with pytest.raises(StoreError) as caught:
        add_row(Database(path), "x")
    assert "writable" in caught.value.hint


def test_one_that_is_taken_away_while_it_is_opened_is_not_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look for it and the opening: an empty one would be a registry of nothing."""
    path = tmp_path / "a name with ? and #.db"
    Database(path).close()
    real = Path.is_file

    def looked(self: Path) -> bool:
        found = real(self)
        if self == path:
            path.unlink()
        return found

    monkeypatch.setattr(Path, "is_file", looked)
    with pytest.raises(StoreError, match="unable to open"):
        Database(path, create=False)
    assert not path.exists()


def search(database: Database) -> list[str]:
    with database.searching() as connection:
        return [row["repo"] for row in rows(connection, "SELECT repo FROM refreshes ORDER BY id")]


def test_a_search_reads_what_was_committed_and_writes_nothing(path: Path) -> None:
    """Its connection is its own, and ends with it."""
    database = Database(path)
    add_row(database, "o/r")
    with database.searching() as connection:
        add_row(database, "o/s")
        assert [row["repo"] for row in rows(connection, "SELECT repo FROM refreshes ORDER BY id")] == ["o/r", "o/s"]
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            connection.execute("DELETE FROM refreshes")
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        connection.execute("SELECT 1")
    assert names(database) == ["o/r", "o/s"]


def test_a_search_finds_a_missing_or_replaced_file_as_others_do(path: Path, tmp_path: Path) -> None:
    """It makes none, says in words what is wrong, and reads the file that is there now."""
    database, other = Database(path), Database(tmp_path / "other.db")
    add_row(database, "o/r")
    add_row(other, "o/other")
    other.close()
    for left in (path, *path.parent.glob("gitmirror.db-*")):
        left.unlink()
    with pytest.raises(StoreError, match="is missing"):
        search(database)
    assert not list(path.parent.glob("gitmirror.db*"))
    shutil.copy(tmp_path / "other.db", path)
    assert search(database) == ["o/other"]
    with pytest.raises(StoreError, match="no such table"), database.searching() as connection:
        rows(connection, "SELECT 1 FROM nonsense")


def test_a_search_that_finds_damage_reports_it(path: Path) -> None:
    """As every other read does: the log takes no push until the file is whole."""
    database = Database(path)
    for number in range(500):
        add_row(database, f"o/{number}")
    database.close()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096 * 2)
        file.write(b"\xff" * (size - 4096 * 2))
    damaged = Database(path, create=False, patient=True)
    with pytest.raises(DatabaseLost):
        search(damaged)
    assert damaged.damage is not None


def test_an_empty_node_is_read_whatever_others_lock(tmp_path: Path) -> None:
    """Any user can lock /, and there is nothing to share in memory."""
    held = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(held, fcntl.LOCK_EX)
    program = (
        "import sys; from pathlib import Path; from appliance.core.store.database import Database\n"
        "Database(Path(sys.argv[1]), create=False, virtual=True).close()"
    )
    try:
        subprocess.run([sys.executable, "-c", program, str(tmp_path / "db")], cwd=ROOT, check=True, timeout=20)
    finally:
        os.close(held)
