"""A node of a fleet dies with its disk and is made anew, with real nodes, guests and kills."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from nats.js import JetStreamContext

from tests.conftest import WIDGETS
from tests.support.fleet import TestFleet
from tests.support.gitutil import commit_files, git, refs, wait_until
from tests.support.serve import Serve
from tests.support.upstream import HttpUpstream

pytestmark = pytest.mark.slow


def push(node: Serve, guest: Path, session: str, text: str) -> str:
    """Record a turn as a guest of the node."""
    commit = commit_files(guest, {f"{text}.txt": f"{text}\n"}, text)
    git("push", "--quiet", "--force", f"{node.git_url}/{WIDGETS}", f"HEAD:refs/agents/{session}", cwd=guest)
    return commit


def last_seq(fleet: TestFleet) -> int:
    """How many messages are in the fleet's stream of turns."""

    async def look(context: JetStreamContext) -> int:
        return (await context.stream_info("gitmirror-default-turns")).state.last_seq

    return fleet.nats.ask(look)


def sessions(node: Serve) -> dict[str, tuple[int, str]]:
    """The sessions of the node: how many turns, and the tip."""
    return {row["session"]: (row["turns"], row["tip"]) for row in json.loads(node.here("sessions", "--json"))}


def prepare(fleet: TestFleet, upstream: HttpUpstream, tmp_path: Path) -> tuple[Path, dict[str, tuple[int, str]]]:
    """Three nodes with a repository, sessions of `a` that are in the fleet, and a session of `b`."""
    fleet.start()
    fleet["a"].cli("add-repo", upstream.url(WIDGETS), "--name", WIDGETS)
    fleet.wait_all(lambda node: node.wait_for_repo(WIDGETS), "the repository is fresh")
    guest = fleet["a"].clone(tmp_path / "guest", WIDGETS)
    push(fleet["a"], guest, "one", "first")
    second = push(fleet["a"], guest, "one", "second")
    other = push(fleet["a"], guest, "two", "third")
    theirs = push(fleet["b"], guest, "three", "fourth")
    expected = {"one": (2, second), "two": (1, other), "three": (1, theirs)}
    wait_until(lambda: last_seq(fleet) >= 4, timeout=30, message="the turns are in the fleet")
    wait_until(lambda: sessions(fleet["c"]) == expected, timeout=30, message="another node lists them")
    return guest, expected


def test_a_node_whose_disk_is_lost_goes_on(fleet: TestFleet, upstream: HttpUpstream, tmp_path: Path) -> None:
    guest, expected = prepare(fleet, upstream, tmp_path)
    a = fleet["a"]
    highest = max(entry["id"] for entry in a.cli_json("audit"))
    a.restart()
    a.kill()
    shutil.rmtree(a.state)
    before = last_seq(fleet)
    report = a.cli_json("restore", "--from-fleet", "a")
    assert (report["turns"], report["sessions"], report["lost_turns"], report["unreached"]) == (3, 2, [], {})
    assert len(report["logs"]) == 1 and report["logs"][0]["id"] >= highest
    assert "the chain holds" in a.cli("audit", "verify", "--fleet").stdout
    a.start()
    a.wait_for_repo(WIDGETS)
    wait_until(lambda: sessions(a) == expected, timeout=30, message="it lists everybody's sessions")
    assert a.cli("audit", "verify", "--fleet").returncode == 0
    kept = [ref for ref in refs(a.mirror(WIDGETS)) if ref.startswith("refs/gitmirror/turns/")]
    assert len(kept) >= 3
    hydrated = tmp_path / "hydrated"
    git("clone", "--quiet", f"{a.git_url}/{WIDGETS}", str(hydrated))
    git("fetch", "--quiet", "origin", "refs/agents/one", cwd=hydrated)
    assert git("rev-parse", "FETCH_HEAD", cwd=hydrated) == expected["one"][1]
    assert last_seq(fleet) == before, "nothing was sent twice"
    commit = push(a, guest, "one", "fifth")
    newest = a.cli_json("audit")[0]
    assert newest["new"] == commit and newest["id"] > highest + 1000
    after = expected | {"one": (3, commit)}
    wait_until(lambda: sessions(fleet["b"]) == after, timeout=30, message="a new turn reaches the others")
    assert last_seq(fleet) == before + 1


@pytest.mark.timeout(300)
def test_killed_at_any_moment_it_is_run_again(fleet: TestFleet, upstream: HttpUpstream, tmp_path: Path) -> None:
    _, expected = prepare(fleet, upstream, tmp_path)
    a = fleet["a"]
    a.kill()
    shutil.rmtree(a.state)
    dice, killed = random.Random(18), 0
    for _ in range(6):
        out = ""
        # It listens for twelve seconds and then works for about one; what is not done in time is killed.
        with contextlib.suppress(subprocess.TimeoutExpired):
            restoring = ("restore", "--from-fleet", "a", "--json", "--even-if-alive")
            out = a.cli(*restoring, check=False, timeout=dice.uniform(11.5, 14)).stdout
        killed += not out
        assert out or not (a.state / "gitmirror.db").exists() or not (a.state / "restoring").exists()
        if (a.state / "gitmirror.db").exists():
            shutil.rmtree(a.state)
    assert killed
    a.cli("restore", "--from-fleet", "a", "--even-if-alive")
    a.start()
    a.wait_for_repo(WIDGETS)
    wait_until(lambda: sessions(a) == expected, timeout=30, message="it lists everybody's sessions")
    assert json.loads(a.cli("audit", "verify", "--fleet", "--json").stdout)["broken"] is None
