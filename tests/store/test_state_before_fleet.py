"""A state directory from before there was a fleet opens, alone or in one, and nothing in it is lost.

`fixtures/state-before-fleet.tar.xz` was written by the file of that time: two repositories, one of the config and one
of the command line, a session with two turns that have notes and an attachment, one that is kept, and one that ended.
"""

from __future__ import annotations

import sqlite3
import tarfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from appliance.core.layout import Layout
from appliance.core.node.state_dir import open_stores
from appliance.core.store.database import Database, rows
from appliance.core.store.fleet_turns import FIRST_AWAY
from tests.support.gitutil import git_result
from tests.support.serve import Serve
from tests.support.tars import unpack_tar

PACKED = Path(__file__).parent / "fixtures" / "state-before-fleet.tar.xz"
HEAD = "5089da8238db5924c30f0b2500cbeb1978460c0002f6c2e79008d658f5949cb0"
WIDGETS = "acme/widgets"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A copy of the old directory; its upstream is gone."""
    with tarfile.open(PACKED) as archive:
        unpack_tar(archive, tmp_path)
    return tmp_path / "state"


def test_its_turns_can_go_to_a_fleet(old: Path) -> None:
    """Each under the hash of its attempt, and what is kept is kept everywhere."""
    stores = open_stores(Layout(old))
    assert {each["session"]: each["node"] for each in stores.sessions.all()} == {"fix-dns": None, "kept": None}
    stores.fleet_turns.join("node-1")
    assert {each["session"]: each["node"] for each in stores.sessions.all()} == {"fix-dns": "node-1", "kept": "node-1"}
    with stores.database.reading() as connection:
        found = rows(connection, "SELECT t.uid, a.hash, t.seq, t.away FROM turns t JOIN audit_events a ON a.id = t.id")
        assert [row["uid"] for row in found] == [row["hash"] for row in found] and len(found) == 3
        assert rows(connection, "PRAGMA foreign_key_check") == []
        assert [row["integrity_check"] for row in rows(connection, "PRAGMA integrity_check")] == ["ok"]
    assert [each.document["session"] for each in stores.fleet.waiting("kept")] == ["kept"]
    assert len(stores.details.recorded_attachments()) == 2
    assert [each["session"] for each in stores.sessions.find(text="dns-1")[0]] == ["fix-dns"]
    assert stores.audit.verify(HEAD).broken is None
    stores.database.close()


class ForgetfulConnection(sqlite3.Connection):
    """As SQLite 3.34, which is that of RHEL 9: RESET is OFF, and the schema that was read before stays in use."""

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        """As in sqlite3."""
        return super().execute(sql.replace("writable_schema = RESET", "writable_schema = OFF"), *parameters)


@pytest.mark.parametrize("is_new", [True, False])
def test_turns_of_others_can_be_recorded_at_once(
    old: Path, tmp_path: Path, is_new: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the process that changed the schema, too: what it refused would be passed over for good."""
    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=ForgetfulConnection))
    database = Database(tmp_path / "new.db" if is_new else Layout(old).database)
    try:
        with database.writing() as connection:
            connection.execute(
                """INSERT INTO turns (id, repo, session, turn, commit_id, at, subject, commits, files_changed,
                   insertions, deletions, client, bytes, away)
                   VALUES (?, '', '', 1, '', '', '', 0, 0, 0, 0, '', 0, 1)""",
                [FIRST_AWAY],
            )
    finally:
        database.close()


@pytest.mark.slow
def test_a_node_alone_serves_it(old: Path) -> None:
    """With its sessions, notes, attachments and log, and without a word of a fleet."""
    serve = Serve(
        old,
        repos=[{"url": "/tmp/fx-bf/up.git", "name": WIDGETS}],
        refresh={"allow_local": True, "interval": "60s"},
        recording={"retention": "36500d"},
    )
    with serve.start():
        shown = serve.cli_json("session", "show", WIDGETS, "fix-dns")
        assert (shown["node"], shown["nodes"]) == (None, [])
        assert [(turn["node"], turn["notes"]) for turn in shown["turns"]] == [
            (None, {"task": "DNS-0"}),
            (None, {"task": "DNS-1"}),
        ]
        assert [len(turn["attachments"]) for turn in shown["turns"]] == [0, 1]
        serve.cli("audit", "verify", "--head", HEAD)
        for name in (WIDGETS, "acme/tools"):
            assert git_result("ls-remote", f"{serve.git_url}/{name}", "HEAD")[1]
