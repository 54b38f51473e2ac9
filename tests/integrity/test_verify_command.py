"""`verify`, `heal` and the question before a purge, with and without a running `serve`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.backup.test_backup_pages import commands
from tests.conftest import WIDGETS
from tests.integrity.nodes import OTHER, DamagedNode, damaged_node
from tests.recording.conftest import AGENTS, TURNS
from tests.support.gitutil import fsck, git, refs, wait_until


@pytest.fixture(params=["serving", "alone"])
def node(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DamagedNode]:
    """A node with `serve`, and one without."""
    with damaged_node(tmp_path, start=request.param == "serving") as found:
        yield found


def verify(node: DamagedNode, *words: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """The exit code of `verify --json`, and what it says of each repository."""
    done = node.serve.cli("verify", *words, "--json", check=False)
    return done.returncode, {document["repo"]: document for document in json.loads(done.stdout)}


def noted(node: DamagedNode) -> list[dict[str, Any]]:
    """The notes in the log."""
    events = [json.loads(line) for line in node.serve.cli("audit", "export").stdout.splitlines()]
    return [event for event in events if event["kind"] == "note"]


@pytest.mark.slow
def test_a_whole_node_and_a_lost_turn(node: DamagedNode) -> None:
    """Whole mirrors are dated; a lost turn and session are named and put back, and the other mirror stays as it is."""
    code, said = verify(node, "--full")
    assert code == 0 and said.keys() == {WIDGETS, OTHER}
    assert all(document["whole"] and document["full"] and not document["faults"] for document in said.values())
    dates = node.status()
    assert dates["verified_whole_at"] and dates["inspected_at"] and dates["damage"] is None
    shown = node.serve.cli("verify", WIDGETS)
    assert shown.stdout.startswith(f"{WIDGETS}: whole (") and f"inspecting {WIDGETS}" in shown.stderr

    node.upstream.refuse()
    before = refs(node.mirror)
    lost = {f"{AGENTS}fix-dns": node.turns[1], node.turn_refs()[0]: node.turns[0]}
    for ref in lost:
        node.lose_ref(ref)
    blob = git("ls-tree", "-r", "main", cwd=node.mirror).split()[2]
    node.lose(blob)
    code, said = verify(node, WIDGETS)
    assert code == 3 and not said[WIDGETS]["whole"] and said[WIDGETS]["faults"]
    assert {each["ref"]: each["commit"] for each in said[WIDGETS]["lost"]} == lost
    assert node.status()["state"] == "damaged" and node.status(OTHER)["state"] != "damaged"

    node.upstream.restore()
    healed = node.serve.cli("heal", WIDGETS)
    assert f"{WIDGETS}: " in healed.stdout
    assert {ref: oid for ref, oid in refs(node.mirror).items() if not ref.startswith(("refs/heads", "refs/tags"))} == {
        ref: oid for ref, oid in before.items() if not ref.startswith(("refs/heads", "refs/tags"))
    }
    fsck(node.mirror)
    assert node.status()["damage"] is None
    code, said = verify(node, WIDGETS, "--full")
    assert code == 0, said
    assert "whole" in node.serve.cli("heal", WIDGETS).stdout


@pytest.mark.slow
def test_what_cannot_be_saved_is_named(tmp_path: Path) -> None:
    """Turn by turn, in `audit` and in one alert; the state stays `damaged` until the session is dropped."""
    alerts = tmp_path / "alerts"
    command = tmp_path / "alert.sh"
    command.write_text(f"#!/bin/sh\ncat >> {alerts}\n")
    command.chmod(0o755)
    with damaged_node(tmp_path, repos=[WIDGETS], alerts={"command": [str(command)]}) as node:
        tree, blob = (git("rev-parse", f"{node.turns[1]}{path}", cwd=node.mirror) for path in ("^{tree}", ":two.txt"))
        turn = node.turn_refs()[1]
        for oid in (node.turns[1], tree, blob):
            node.lose(oid)
        node.serve.cli("heal", WIDGETS, check=False)

        def told() -> list[dict[str, Any]]:
            text = alerts.read_text() if alerts.exists() else ""
            return [json.loads(line) for line in text.splitlines()]

        def lost() -> list[dict[str, Any]]:
            named = [(alert, alert["words"] or "") for alert in told()]
            return [alert for alert, words in named if node.turns[1] in words and turn in words]

        wait_until(lost, message="an alert names the turn")
        assert all((alert["event"], alert["error"]) == ("damaged", "mirror") for alert in told())
        assert "session drop" in lost()[0]["hint"]
        shown = {row["id"]: row["reason"] for row in node.serve.cli_json("audit")}
        number = int(turn.rpartition("/")[2])
        assert "its commit is lost" in shown[number] and shown[number - 2] is None
        rows = noted(node)
        assert {(row["ref"], row["session"], row["old"]) for row in rows} >= {(turn, "fix-dns", node.turns[1])}
        assert node.serve.cli("audit", "verify").returncode == 0
        assert node.serve.wait_for_repo(WIDGETS, "damaged")["damage"]
        node.serve.cli("heal", WIDGETS, check=False)
        assert noted(node) == rows, "each is noted once"

        node.serve.cli("session", "drop", WIDGETS, "fix-dns", "--yes")
        node.serve.wait_for_repo(WIDGETS, "fresh")
        wait_until(lambda: told()[-1]["event"] == "recovered", message="the last alert is that all is well")
        assert len(lost()) == 1


@pytest.mark.slow
def test_the_commands_of_the_page(tmp_path: Path) -> None:
    """As "A disk lied" of docs/operations.md has them; `doctor` names the damage before, and no more afterwards."""
    with damaged_node(tmp_path, repos=[WIDGETS], start=False) as node:
        node.lose_ref(f"{AGENTS}fix-dns")
        codes = []
        for words in commands("A disk lied"):
            assert words[0] == "gitmirror.pyz"
            words = [word.replace("jomcgi/homelab", WIDGETS) for word in words[1:]]
            codes.append(node.serve.cli(*words, check=False).returncode)
            checks = {check["name"]: check for check in node.serve.cli_json("doctor")}
            assert checks["mirrors"]["ok"] is (words[0] == "heal"), checks["mirrors"]
        assert codes == [3, 3, 0]
        node.serve.cli("verify", "--full")
        found = {check["name"]: check for check in node.serve.cli_json("doctor")}["mirrors"]["found"]
        assert found.startswith("1 of 1 were inspected in full")


@pytest.mark.slow
def test_a_repository_that_was_never_cloned(tmp_path: Path) -> None:
    """It is not damaged, and there is nothing to heal."""
    with damaged_node(tmp_path, repos=[WIDGETS]) as node:
        node.upstream.refuse()
        node.serve.cli("add-repo", node.upstream.url("acme/new"), "--no-wait")
        code, said = verify(node, "acme/new")
        assert code == 1 and said["acme/new"]["whole"] is None and "not cloned" in said["acme/new"]["error"]
        assert node.serve.cli("heal", "acme/new", check=False).returncode == 1
        assert node.serve.cli("verify", "acme/nothing", check=False).returncode == 2
        code, said = verify(node)
        assert code == 0 and said.keys() == {WIDGETS}


@pytest.mark.slow
def test_a_purge_names_what_it_ends(tmp_path: Path) -> None:
    """The session, and how many turns; no answer changes nothing."""
    with damaged_node(tmp_path, repos=[WIDGETS]) as node:
        asked = node.serve.cli("remove-repo", WIDGETS, "--purge", check=False, input="n\n")
        assert asked.returncode == 1
        assert "ends 1 session with 2 turns" in asked.stderr and "fix-dns: 2 turns" in asked.stderr
        assert f"heal {WIDGETS}" in asked.stderr
        assert {ref for ref in refs(node.mirror) if ref.startswith((AGENTS, TURNS))} == {
            f"{AGENTS}fix-dns",
            *node.turn_refs(),
        }
        node.serve.configure()
        node.serve.reload()
        wait_until(lambda: not node.serve.cli_json("repos")[0]["enabled"], message="the config is read again")
        node.serve.cli("remove-repo", WIDGETS, "--purge", input="y\n")
        assert not node.mirror.exists()
        assert node.serve.cli_json("sessions") == []
