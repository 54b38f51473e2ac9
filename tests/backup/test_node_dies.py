"""A node dies with its disk, and another takes its place: nothing recorded is lost, and how long each step takes.

The suite takes a small node. For the figures of a full one:
`NODE_REPOSITORIES=1000 .venv/bin/python -m pytest -s tests/backup/test_node_dies.py`.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from appliance.core.api.client import call
from appliance.core.git.history import Changed, turn_facts
from appliance.core.layout import Layout
from tests.backup.crowd import Crowd, everything
from tests.conftest import ServeFactory
from tests.git.lab import Lab
from tests.serving.conftest import SETTLED
from tests.support.generate import generate_repository
from tests.support.gitutil import fsck, wait_until
from tests.support.serve import Serve

REPOSITORIES = int(os.environ.get("NODE_REPOSITORIES", "10"))
SESSIONS = 10
"""In each repository, with two turns each."""


class Clock:
    """Takes the time of steps, and prints each as it ends (`pytest -s`)."""

    @contextmanager
    def over(self, step: str) -> Iterator[None]:
        """Times the block."""
        start = time.monotonic()
        yield
        print(f"{step:<44} {time.monotonic() - start:8.2f} s", flush=True)


def size_of(path: Path) -> int:
    """The bytes of all files below a directory."""
    return sum(each.stat().st_size for each in path.rglob("*") if each.is_file())


@pytest.mark.slow
@pytest.mark.timeout(300 + 6 * REPOSITORIES)
def test_a_node_dies_with_its_disk(serve_factory: ServeFactory, tmp_path: Path) -> None:
    """Backup, verify, and on a fresh directory restore and serve: all that was recorded is there again."""
    clock, target = Clock(), tmp_path / "backups"
    settings = {"refresh": SETTLED | {"allow_local": True}, "backup": {"to": str(target)}}
    serve = serve_factory(**settings)  # type: ignore[arg-type]
    template = generate_repository(tmp_path / "template.git", seed=1, commits=20, files=20)
    crowd = Crowd(Layout(serve.state), tmp_path / "upstream", template, REPOSITORIES, SESSIONS, 2)
    print(f"\n{REPOSITORIES} repositories, {REPOSITORIES * SESSIONS} sessions, {REPOSITORIES * SESSIONS * 2} turns")
    with clock.over("(made)"):
        crowd.build()
    _are_true(crowd)

    patience = 120 + REPOSITORIES * 3.0

    def back_up(step: str) -> dict[str, int]:
        with clock.over(step):
            done = serve.cli("backup", "--json", timeout=patience)
        report: dict[str, int] = json.loads(done.stdout)
        assert not report["problems"]
        print(f"    {report['written']:,} bytes in {report['files']} new files, {report['bytes']:,} to restore")
        return report

    first = back_up("the first backup")
    assert first["repositories"] == REPOSITORIES and first["turns"] == REPOSITORIES * SESSIONS * 2
    assert back_up("a backup without news")["files"] == 2, "the database and its head"
    changed = crowd.names()[:: max(2, REPOSITORIES // 10)]
    crowd.record_more(changed)
    assert back_up(f"a backup with news of {len(changed)} repositories")["files"] == 2 + len(changed)
    with clock.over("backup verify, of three backups"):
        assert json.loads(serve.cli("backup", "verify", str(target), "--json", timeout=patience).stdout)["faults"] == []
    before = everything(crowd.layout)
    shutil.rmtree(serve.state)

    new = serve_factory("new", **settings)  # type: ignore[arg-type]
    with clock.over("restore"):
        report = json.loads(new.cli("restore", str(target), "--json", timeout=patience).stdout)
    assert report["repositories"] == REPOSITORIES and report["turns"] == first["turns"] + 2 * len(changed)
    assert everything(Layout(new.state)) == before
    with clock.over("audit verify"):
        assert new.cli("audit", "verify", timeout=patience).returncode == 0
    with clock.over("serve until ready"):
        new.start(timeout=patience)
    with clock.over("status, the first one"):
        assert "restored from a backup" in str(new.cli_json("status", timeout=patience)["warnings"])
    with clock.over("until every repository is served again"):
        wait_until(lambda: _all_fresh(new), timeout=patience, interval=1, message="all are refreshed")
    assert everything(Layout(new.state)) == before
    assert not new.cli_json("status", timeout=patience)["warnings"]
    replay = tmp_path / "replay"
    new.cli("session", "checkout", crowd.names()[-1], "s3", str(replay), "--turn", "2")
    assert (replay / "work" / "s3-1.txt").exists() and not (replay / "work" / "s3-0.txt").exists()
    print(f"state directory {size_of(new.state):,} bytes, backups {size_of(target):,} bytes")


def _all_fresh(serve: Serve) -> bool:
    return {repo["state"] for repo in call(Layout(serve.state), "GET", "/v1/status")["repos"]} == {"fresh"}


def _are_true(crowd: Crowd) -> None:
    """The rows of one repository are what gitmirror itself computes from its commits, and its mirror is whole."""
    name = crowd.names()[0]
    fsck(crowd.layout.mirror(name))
    turns = [turn for session in everything(crowd.layout)["turns"] for turn in session if turn.repo == name]
    assert len(turns) == SESSIONS * 2
    lab = Lab(crowd.layout.state)
    for turn in turns:
        facts = lab.run(turn_facts(lab.mirror(name), turn.commit))
        changed = Changed(turn.files_changed, turn.insertions, turn.deletions)
        assert (facts.base, facts.subject, facts.commits, facts.changed) == (
            turn.base,
            turn.subject,
            turn.commits,
            changed,
        )
    lab.close()
