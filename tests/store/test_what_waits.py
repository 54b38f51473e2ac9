"""What waits to go out is found without a look at all that was recorded, because it is counted every few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.core.models import Turn
from appliance.core.store.database import Database
from appliance.core.store.fleet import FleetStore
from appliance.core.store.fleet_outgoing import OutgoingStore, SessionName

REPO = "acme/widgets"
SENT = 5000
STEPS = 1000
"""Instructions of SQLite's machine between two calls of a progress handler."""
WAITING = 10**9


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """With many turns and attachments that went out, and one that waits."""
    opened = Database(tmp_path_factory.mktemp("waits") / "gitmirror.db")
    with opened.writing() as connection:
        turns = [(each, f"s{each}", 1, each) for each in range(1, SENT + 1)]
        long = [(SENT + each, "long", each, SENT + each) for each in range(1, SENT + 1)]
        connection.conn.executemany(
            f"""INSERT INTO turns (id, repo, session, turn, commit_id, at, subject, commits, files_changed, insertions,
                deletions, client, bytes, seq) VALUES (?, '{REPO}', ?, ?, 'c', '2026', '', 1, 1, 1, 1, 'c', 1, ?)""",
            [*turns, *long, (WAITING, "long", SENT + 1, None)],
        )
        files = [(each, "log", f"{each:064x}", 1) for each, *_ in turns]
        connection.conn.executemany(
            "INSERT INTO turn_attachments (turn_id, name, size, sha256, sent) VALUES (?, ?, 1, ?, ?)",
            [*files, (1, "late", "f" * 64, 0)],
        )
        connection.execute("UPDATE turns SET uid = 'u' WHERE id = 1")
    yield opened
    opened.close()


@pytest.mark.parametrize(
    ("look", "expected"),
    [
        (lambda store: store.unsent().turns, {REPO: 1}),
        (lambda store: store.unsent().attachments, {REPO: 1}),
        (lambda store: store.sessions([REPO], [], 9), [SessionName(REPO, "long")]),
        (lambda store: [each.turn.id for each in store.turns(SessionName(REPO, "long"), [])], [WAITING]),
        (lambda store: store.is_waited_for(SessionName(REPO, "long"), []), True),
        (lambda store: store.is_waited_for(SessionName(REPO, "long"), [WAITING]), False),
        (lambda store: [each.row.name for each in store.attachments([REPO], 9)], ["late"]),
        (lambda store: store.is_attached("e" * 64), False),
    ],
)
def test_only_what_waits_is_read(
    database: Database, monkeypatch: pytest.MonkeyPatch, look: Callable[[OutgoingStore], Any], expected: Any
) -> None:
    """Fewer instructions than rows: SQLite needs several for each that it passes over."""
    monkeypatch.setattr(database, "searching", database.reading)
    count = 0

    def step() -> int:
        nonlocal count
        count += 1
        return 0

    with database.reading() as connection:
        connection.conn.set_progress_handler(step, STEPS)
        found = look(OutgoingStore(database))
        connection.conn.set_progress_handler(None, 0)
    assert found == expected
    assert count * STEPS < SENT


def test_a_turn_that_ended_while_it_went_out_is_ended_in_the_fleet(tmp_path: Path) -> None:
    """Whoever ended it did not know that the fleet has it."""
    opened = Database(tmp_path / "gitmirror.db")
    turn = Turn(7, REPO, "s", "c" * 40, None, "2026-01-31T12:00:00.000Z", "subject", 1, 1, 1, 0, "c", 10)
    assert not OutgoingStore(opened).sent(turn, "u" * 64, "a", 12, "{}")
    [waiting] = FleetStore(opened, time.time).waiting("end")
    assert (waiting.document["repo"], waiting.document["session"]) == (REPO, "s")
    assert (waiting.document["uids"], waiting.document["rows"]) == (["u" * 64], [12])
    opened.close()
