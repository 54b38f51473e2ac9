"""Mirrors that guests brought here go last of all, and none in which something was recorded."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from tests.conftest import WIDGETS
from tests.recording.conftest import record_turn
from tests.support.gitutil import wait_until
from tests.support.serve import Serve
from tests.support.upstream import HttpUpstream

NAMES = ("acme/cold", "acme/recorded", WIDGETS)
"""The first two were brought here by guests, the last one is an operator's."""


@pytest.mark.slow
def test_mirrors_that_nobody_registered(tmp_path: Path, generated_bare: Path) -> None:
    """One goes as a whole, with an event and a line in the log; the others are served as before."""
    with HttpUpstream(tmp_path / "upstream") as upstream:
        for name in NAMES:
            upstream.add(name, generated_bare)
        sink = tmp_path / "events"
        allow = [{"url": upstream.url("acme") + "/*"}]
        settled = {"interval": "1h", "stale_after": "1d"}
        serve = Serve(tmp_path / "state", refresh=settled, allow=allow).start()
        with serve:
            serve.cli("add-repo", upstream.url(WIDGETS))
            for name in NAMES[:2]:
                serve.clone(tmp_path / name, name, "--depth=1")
            record_turn(serve.clone(tmp_path / "guest", "acme/recorded", "--depth=1"), "session", "a turn")
            wait_until(lambda: serve.cli_json("sessions"), message="the turn is stored")
            assert serve.terminate() == 0
            with sqlite3.connect(serve.state / "gitmirror.db") as database:
                database.execute("UPDATE repos SET created_at = created_at - 3600")
                database.execute("UPDATE allowed_repos SET used_at = used_at - 3600")
            command = ["sh", "-c", f"cat >{sink}"]
            serve.configure(refresh=settled, allow=allow, storage={"budget": "1KiB"}, events={"command": command})
            serve.start()

            def names() -> list[str]:
                return [repo["name"] for repo in serve.status()["repos"]]

            wait_until(lambda: "acme/cold" not in names(), message=f"the cold mirror goes\n{serve.log()}")
            wait_until(lambda: not serve.mirror("acme/cold").exists(), message="it is gone from the disk")
            wait_until(lambda: serve.status()["storage"]["next"] == [], message="nothing is left to go")
            assert names() == ["acme/recorded", WIDGETS]
            for name in names():
                serve.clone(tmp_path / f"clone-{name.rpartition('/')[2]}", name, "--depth=1")
            assert "acme/cold: removed the whole mirror" in serve.log()

            def told() -> list[str]:
                lines = sink.read_text().splitlines() if sink.exists() else []
                return [event["repo"] for event in map(json.loads, lines) if event["event"] == "expired"]

            wait_until(lambda: told() == ["acme/cold"], message="the event goes out")
            status = serve.here("status", codes=(0, 3))
            assert "over [storage] budget (1.0 KiB)" in status and "of its budget of 1.0 KiB: " in status
            assert "FAIL  storage: " in serve.here("doctor", codes=(3,))
            said = serve.here("storage")
            assert "over the budget: what is left is in use or must not be removed" in said
            assert "removed last:\n" in said
            assert "acme/recorded" in said
