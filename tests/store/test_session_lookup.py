"""A session is found by its name, or by how its name begins, without a look at the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from appliance.core.store.database import Database
from appliance.core.store.sessions import SessionStore

REPO = "o/a"
STEPS = 1000
"""Instructions of SQLite's machine between two calls of a progress handler."""


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """An empty one."""
    opened = Database(tmp_path / "gitmirror.db")
    yield opened
    opened.close()


def insert(database: Database, *names: str, repo: str = REPO) -> None:
    """Sessions whose last turns are a second apart, the first the oldest."""
    with database.writing() as connection:
        connection.conn.executemany(
            """INSERT INTO sessions (repo, session, ref, tip, turns, commits, files_changed, insertions, deletions,
               first_at, last_at, client, bytes, kept) VALUES (?, ?, ?, '1', 1, 1, 1, 1, 1, ?, ?, 'c', 1, 1)""",
            [
                (repo, name, f"refs/agents/{name}", at, at)
                for name, at in ((name, f"2026-01-01T00:{i // 60:02}:{i % 60:02}.000Z") for i, name in enumerate(names))
            ],
        )


def steps(database: Database, work: Callable[[], Any]) -> int:
    """How often SQLite went through STEPS instructions for `work`."""
    count = 0

    def step() -> int:
        nonlocal count
        count += 1
        return 0

    with database.reading() as connection:
        connection.conn.set_progress_handler(step, STEPS)
        work()
        connection.conn.set_progress_handler(None, 0)
    return count


NAMES = [
    "a", "ab", "A", "a/x", "a\0b", "a%", "a_c", "b", "é", "éa", "a\ud7ff", "a\ue000", "a\U0010ffff", "a\U0010ffffz",
    "\U0010ffff\U0010ffffz", "\U0010ffff\U0010ffffa",
]  # fmt: skip


@pytest.mark.parametrize("prefix", ["", "a", "ab", "a\0", "a%", "a_", "é", "a\ud7ff", "a\U0010ffff", "\U0010ffff", "z"])
def test_a_prefix_may_end_in_any_character(database: Database, prefix: str) -> None:
    """The session of exactly that name stands alone; otherwise all come, newest first, in upper and lower case."""
    insert(database, *NAMES)
    insert(database, *NAMES, repo="o/b")
    expected = [prefix] if prefix in NAMES else [name for name in reversed(NAMES) if name.startswith(prefix)]
    found = SessionStore(database).matching(REPO, prefix)
    assert [row["session"] for row in found] == expected
    assert found == [row for row in SessionStore(database).all(REPO) if row["session"] in expected]


def test_get_takes_whole_names_alone(database: Database) -> None:
    """The row is that of the list."""
    insert(database, "one", "one-more")
    store = SessionStore(database)
    assert store.get(REPO, "one") == next(row for row in store.all() if row["session"] == "one")
    assert [store.get(REPO, name) for name in ("on", "ONE", "one-", "")] == 4 * [None]
    assert store.get("o/b", "one") is None


def test_half_a_character_is_no_name(database: Database) -> None:
    """Such a text can be in an address or an argument, and in no database."""
    insert(database, "one")
    store = SessionStore(database)
    assert (store.get(REPO, "\ud800"), store.matching(REPO, "\udcff")) == (None, [])


def test_one_of_many_sessions_is_found_at_once(database: Database) -> None:
    """Every request about a session looks it up, under the lock that pushes wait for."""
    insert(database, *(f"s{number}" for number in range(3000)))
    store = SessionStore(database)
    assert steps(database, partial(store.page, REPO, 3000)) > 30
    for prefix, count in (("s777", 1), ("s77", 1), ("s299", 1), ("s300", 1), ("t", 0)):
        assert steps(database, partial(store.matching, REPO, prefix)) <= 1
        assert len(store.matching(REPO, prefix)) == count
    assert steps(database, lambda: store.get(REPO, "s1234")) <= 1
