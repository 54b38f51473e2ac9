"""The database file: made by many at once, moved on by migrations, refused when it is of a newer version."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlite_utils

from appliance.core.errors import UsageError
from appliance.core.models import RefChange, RefreshOutcome
from appliance.core.store.database import Database, StoreError
from appliance.core.store.health import REFRESHES_KEPT, HealthStore
from appliance.core.store.migrations import MIGRATIONS
from appliance.core.store.registry import Registry, UnknownRepo, Wanted
from appliance.core.upstream import same_upstream
from tests.conftest import WIDGETS, ServeFactory
from tests.support.serve import ROOT
from tests.support.upstream import HttpUpstream

URL = "https://example.com/acme/widgets"

_OPEN = """
import os, sys, time
from pathlib import Path
from appliance.core.store.database import Database
place = Path(sys.argv[1])
(place / f"ready.{os.getpid()}").touch()
while not (place / "go").exists():
    pass
start = (place / "go").stat().st_mtime
for number in range(int(sys.argv[2])):
    while time.time() < start + 0.1 * number:
        pass
    database = Database(place / f"{number}.db")
    with database.writing() as connection:
        connection.execute("INSERT INTO repos (name, url, source, created_at) VALUES (?, 'x', 'cli', 0)",
                           [f"a/{os.getpid()}"])
    database.close()
"""


@pytest.fixture
def database(tmp_path: Path) -> Database:
    """A fresh database."""
    return Database(tmp_path / "gitmirror.db")


@pytest.mark.slow
def test_many_processes_make_a_database_at_once(tmp_path: Path) -> None:
    """Four processes race for each of ten fresh files: none fails, each file is whole, nobody's row is lost."""
    argv = [sys.executable, "-c", _OPEN, str(tmp_path), "10"]
    racing = [subprocess.Popen(argv, cwd=ROOT, stderr=subprocess.PIPE) for _ in range(4)]
    end = time.monotonic() + 60
    while len(list(tmp_path.glob("ready.*"))) < 4 and time.monotonic() < end:
        time.sleep(0.01)
    (tmp_path / "go").touch()
    said = [process.communicate(timeout=60)[1] for process in racing]
    assert [process.returncode for process in racing] == [0, 0, 0, 0], said
    for number in range(10):
        connection = sqlite_utils.Database(tmp_path / f"{number}.db")
        assert connection["repos"].count == 4
        assert MIGRATIONS.pending(connection) == []
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


@pytest.mark.slow
def test_commands_make_the_state_directory_at_once(serve_factory: ServeFactory) -> None:
    """Three commands on a machine that has nothing yet: each succeeds."""
    serve = serve_factory()
    argv = [*serve.command, "--state", str(serve.state), "--config", str(serve.config), "repos", "--json"]
    racing = [subprocess.Popen(argv, cwd=ROOT, env=serve.env, stdout=-1, stderr=-1) for _ in range(3)]
    answers = [process.communicate(timeout=60) for process in racing]
    assert [process.returncode for process in racing] == [0, 0, 0], answers
    assert all(out.strip() == b"[]" for out, _ in answers)


@pytest.mark.slow
def test_a_database_of_a_newer_version_is_refused_and_left_alone(
    serve_factory: ServeFactory, upstream: HttpUpstream
) -> None:
    """serve and every command exit 1 and say so; not a byte of it changes."""
    serve = serve_factory()
    serve.cli("add-repo", upstream.url(WIDGETS))
    path = serve.state / "gitmirror.db"
    with sqlite3.connect(path) as connection:
        connection.execute(
            "INSERT INTO _sqlite_migrations (migration_set, name, applied_at) VALUES ('gitmirror', '9999_later', '')"
        )
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    before = path.read_bytes()
    for command in (["serve", *serve.options], ["repos"], ["status"], ["add-repo", upstream.url("acme/other")]):
        done = serve.cli(*command, check=False)
        assert done.returncode == 1 and "newer gitmirror" in done.stderr, (command, done)
    assert path.read_bytes() == before
    assert serve.processes() == []


def test_an_old_database_is_moved_on_with_what_is_in_it(tmp_path: Path) -> None:
    """From each step on: the ones that are missing are applied, rows stay."""
    names = sorted(MIGRATIONS.names)
    for number in range(1, len(names)):
        path = tmp_path / f"{number}.db"
        old = sqlite_utils.Database(path)
        MIGRATIONS.apply(old, stop_before=names[number])
        old.execute("INSERT INTO repos (name, url, source, created_at) VALUES ('a/b', 'x', 'cli', 0)")
        old.conn.commit()
        old.close()
        database = Database(path)
        with database.reading() as connection:
            assert MIGRATIONS.pending(connection) == []
            assert [row["name"] for row in connection["repos"].rows] == ["a/b"]
        database.close()


def test_migrations_are_numbered_without_gaps() -> None:
    """Append only: the order of names is the order of steps."""
    numbers = [int(name.partition("_")[0]) for name in sorted(MIGRATIONS.names)]
    assert numbers == list(range(1, len(numbers) + 1))


def test_a_missing_database_is_not_made_where_one_must_be(tmp_path: Path) -> None:
    """An empty registry in place of a lost one would stop serving everything without a word."""
    with pytest.raises(StoreError, match="is missing"):
        Database(tmp_path / "gone.db", create=False)
    assert not (tmp_path / "gone.db").exists()
    (tmp_path / "directory.db").mkdir()
    with pytest.raises(StoreError, match="not a file"):
        Database(tmp_path / "directory.db")


def test_a_file_that_is_no_database_is_an_error_in_words(tmp_path: Path) -> None:
    """Named, with what to look at."""
    path = tmp_path / "gitmirror.db"
    path.write_text("this is no database, and it is long enough to be looked at as one\n" * 20)
    with pytest.raises(StoreError, match="not a database") as caught:
        Database(path)
    assert str(path) in caught.value.message and caught.value.hint


def test_a_replaced_file_is_noticed(database: Database) -> None:
    """What is written to a file that was moved away would be lost: the next use sees it."""
    database.path.rename(database.path.with_name("moved.db"))
    with pytest.raises(StoreError, match="is missing"), database.writing():
        pass
    database.path.with_name("moved.db").rename(database.path)
    with database.writing() as connection:
        connection.execute("INSERT INTO repos (name, url, source, created_at) VALUES ('a/b', 'x', 'cli', 0)")


def test_a_failed_write_leaves_nothing(database: Database) -> None:
    """All of it or nothing, whatever went wrong."""
    with pytest.raises(ZeroDivisionError), database.writing() as connection:
        connection.execute("INSERT INTO repos (name, url, source, created_at) VALUES ('a/b', 'x', 'cli', 0)")
        raise ZeroDivisionError
    with database.reading() as connection:
        assert connection["repos"].count == 0


@pytest.fixture
def registry(database: Database) -> Registry:
    """An empty registry."""
    return Registry(database, lambda: 1000.0, same_upstream)


def test_a_repository_added_again_is_another_one(registry: Registry) -> None:
    """Its id is never given twice, so that no cache takes the new one for the old."""
    first = registry.add(Wanted(WIDGETS, URL))
    assert registry.add(Wanted(WIDGETS, URL)).id == first.id
    registry.remove(WIDGETS, "the config")
    assert registry.add(Wanted(WIDGETS, URL)).id > first.id


@pytest.mark.parametrize("branch", ["a b", "../x", "-x", "a\tb", "x.lock", ""])
def test_a_branch_that_no_ref_can_have_is_refused(registry: Registry, branch: str) -> None:
    """When it is changed as well as when it is added, and then nothing is changed."""
    before = registry.add(Wanted(WIDGETS, URL))
    with pytest.raises(UsageError, match="is not a branch's name"):
        registry.change(WIDGETS, {"branch": branch, "enabled": False})
    assert registry.get(WIDGETS) == before
    assert registry.change(WIDGETS, {"branch": "release/1.0"}).branch == "release/1.0"


def test_what_is_unknown_is_an_error(registry: Registry) -> None:
    """By name, whatever is asked."""
    asks: list[Callable[[], object]] = [
        lambda: registry.get("no/such"),
        lambda: registry.change("no/such", {"enabled": True}),
        lambda: registry.remove("no/such", "the config"),
    ]
    for ask in asks:
        with pytest.raises(UnknownRepo, match="no/such is not registered"):
            ask()


def test_reconciling_is_all_or_nothing_and_idempotent(registry: Registry) -> None:
    """The same list twice changes nothing; what it cannot follow is told and the rest is."""
    registry.add(Wanted("acme/mine", "https://example.com/mine/mine"))
    listed = [Wanted(WIDGETS, URL), Wanted("acme/mine", "https://example.com/other/mine"), Wanted("acme/x", f"{URL}x")]
    problems = registry.reconcile(listed)
    assert len(problems) == 1 and "acme/mine" in problems[0]
    after = registry.all()
    assert [repo.name for repo in after] == ["acme/mine", WIDGETS, "acme/x"]
    assert registry.reconcile(listed) == problems and registry.all() == after
    registry.reconcile([Wanted(WIDGETS, URL, branch="dev", interval=5.0)])
    states = {repo.name: (repo.branch, repo.interval, repo.enabled, repo.source) for repo in registry.all()}
    assert states == {
        "acme/mine": (None, None, True, "cli"),
        WIDGETS: ("dev", 5.0, True, "config"),
        "acme/x": (None, None, False, "config"),
    }
    with pytest.raises(UsageError, match="listed in the config"):
        registry.remove(WIDGETS, "the config")
    registry.remove("acme/x", "the config")


def test_history_is_bounded(database: Database, registry: Registry) -> None:
    """Each repository keeps its newest rows; health goes with its repository, history stays to be read."""
    store = HealthStore(database)
    repo, other = registry.add(Wanted(WIDGETS, URL)), registry.add(Wanted("acme/other", f"{URL}2"))
    store.record_refresh(other.id, RefreshOutcome("acme/other", 1.0, 0.1), failures=0)
    for number in range(REFRESHES_KEPT + 5):
        moved = (RefChange("refs/heads/main", None, "a" * 40),)
        store.record_refresh(repo.id, RefreshOutcome(WIDGETS, float(number), 0.1, moved), failures=0, tip="a" * 40)
    assert len(store.refreshes(WIDGETS, limit=10_000)) == REFRESHES_KEPT
    assert len(store.refreshes("acme/other")) == 1
    newest = store.refreshes(WIDGETS, limit=1)[0]
    assert newest["moved"] == [{"ref": "refs/heads/main", "old": None, "new": "a" * 40}]
    assert store.get(repo.id).tip == "a" * 40
    registry.remove(WIDGETS, "the config")
    assert repo.id not in store.all()
    store.update(repo.id, size=1)


def test_anchor_times_are_replaced_as_a_whole(database: Database, registry: Registry) -> None:
    """Per repository; gone with it."""
    store = HealthStore(database)
    repo = registry.add(Wanted(WIDGETS, URL))
    store.set_anchor_times(repo.id, {"a": 1.0, "b": 2.0})
    store.set_anchor_times(repo.id, {"b": 3.0})
    assert store.anchor_times(repo.id) == {"b": 3.0}
    registry.remove(WIDGETS, "the config")
    assert store.anchor_times(repo.id) == {}
