"""The audit log: what a row says, that it is chained, that tampering is found, and that nobody is left out."""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest

from tests.conftest import WIDGETS, ServeFactory
from tests.serving.conftest import SETTLED, Node, assert_log_is_true, audit, entry_of
from tests.support.gitutil import git, refs
from tests.support.pkt import EMPTY_PACK, ZERO, raw_push
from tests.support.serve import Serve
from tests.support.upstream import HttpUpstream

# Of the contract, in its order.
KEYS = ["id", "at", "repo", "session", "ref", "old", "new", "verdict", "outcome", "reason", "client", "hash", "guest"]


def push(serve: Serve, *commands: tuple[str, str, str], pack: bytes = EMPTY_PACK, repo: str = WIDGETS) -> bool:
    """Push by hand; return whether it was accepted."""
    return raw_push(*serve.git_address, f"/{repo}", commands, pack).accepted


def export(serve: Serve) -> list[dict[str, Any]]:
    """Every event, oldest first, as `audit export` prints it."""
    return [json.loads(line) for line in serve.cli("audit", "export").stdout.splitlines()]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, generated_bare: Path) -> Iterator[Node]:
    """A node with a log of accepted, refused and failed attempts, which is not running any more."""
    base = tmp_path_factory.mktemp("log")
    with HttpUpstream(base / "upstream") as upstream:
        for name in (WIDGETS, "acme/gadgets"):
            upstream.add(name, generated_bare)
        repos = [upstream.url(WIDGETS), upstream.url("acme/gadgets")]
        with Serve(base / "state", repos=repos, refresh=SETTLED).start() as serve:
            serve.wait_for_repo(WIDGETS)
            serve.wait_for_repo("acme/gadgets")
            node = Node(serve, upstream)
            tip, parent = node.tip, git("rev-parse", "main~1", cwd=node.mirror)
            assert push(serve, (ZERO, parent, "refs/agents/s1"))
            assert push(serve, (parent, tip, "refs/agents/s1"), (ZERO, tip, "refs/agents/s2"))
            assert not push(serve, (ZERO, tip, "refs/heads/new"))
            assert not push(serve, (tip, ZERO, "refs/agents/s1"), pack=b"")
            assert not push(serve, (ZERO, "1" * 40, "refs/agents/s3"))
            assert push(serve, (ZERO, tip, "refs/agents/s1"), repo="acme/gadgets")
            assert serve.terminate() == 0
            yield node


@pytest.fixture
def log_copy(written: Node, tmp_path: Path) -> Serve:
    """A copy of that node's state, to tamper with."""
    state = tmp_path / "tampered"
    state.mkdir()
    with closing(sqlite3.connect(written.serve.state / "gitmirror.db")) as source:
        source.execute("VACUUM INTO ?", [str(state / "gitmirror.db")])
    return Serve(state)


def test_a_row_has_what_the_contract_promises(written: Node) -> None:
    """`audit --json`: exactly these keys, newest first, with the values of each kind of attempt."""
    rows = written.serve.cli_json("audit")
    assert [list(row) for row in rows] == [KEYS] * 7
    assert [row["id"] for row in rows] == sorted((row["id"] for row in rows), reverse=True)
    parent = git("rev-parse", "main~1", cwd=written.mirror)
    gadget, failed, deleted, branch, second, moved, first = rows
    assert (gadget["repo"], gadget["session"], gadget["old"], gadget["new"]) == (
        "acme/gadgets",
        "s1",
        None,
        written.tip,
    )
    assert (failed["verdict"], failed["outcome"], failed["new"]) == ("accepted", "failed", "1" * 40)
    assert "missing necessary objects" in failed["reason"] or "bad pack" in failed["reason"]
    assert (deleted["verdict"], deleted["outcome"], deleted["new"]) == ("rejected", None, None)
    assert deleted["reason"] == "recorded sessions cannot be deleted"
    assert (branch["verdict"], branch["session"], branch["ref"]) == ("rejected", None, "refs/heads/new")
    assert (second["verdict"], second["outcome"], second["session"]) == ("accepted", "applied", "s2")
    assert (moved["old"], moved["new"], moved["outcome"], moved["reason"]) == (parent, written.tip, "applied", None)
    assert first["old"] is None
    for row in rows:
        assert row["client"] == "127.0.0.1"
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", row["at"])
        assert re.fullmatch(r"[0-9a-f]{64}", row["hash"])


@pytest.mark.slow
def test_rows_are_chosen_by_repository_session_and_number(written: Node) -> None:
    """--repo, --session and --limit, alone and together."""
    serve = written.serve
    assert {row["repo"] for row in serve.cli_json("audit", "--repo", WIDGETS)} == {WIDGETS}
    assert len(serve.cli_json("audit", "--session", "s1")) == 4
    assert len(serve.cli_json("audit", "--session", "s1", "--repo", "acme/gadgets")) == 1
    assert [row["repo"] for row in serve.cli_json("audit", "--limit", "1")] == ["acme/gadgets"]
    assert serve.cli("audit", "--repo", "acme/nothing", check=False).returncode == 2
    shown = serve.cli("audit").stdout
    assert all(word in shown for word in ("refs/heads/new", "rejected", "applied", "failed", "127.0.0.1"))


@pytest.mark.slow
def test_the_export_hashes_to_its_own_chain(written: Node) -> None:
    """By the documented form alone: SHA-256 of the event as JSON without `hash`, keys sorted, no spaces, ASCII."""
    events = export(written.serve)
    assert [event["id"] for event in events] == list(range(1, len(events) + 1))
    before = "0" * 64
    for event in events:
        told = event.pop("hash")
        assert event["prev"] == before
        text = json.dumps(event, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        assert hashlib.sha256(text.encode("ascii")).hexdigest() == told
        before = told
    said = written.serve.cli("audit", "verify").stdout
    assert before in said
    assert written.serve.cli_json("status", codes=(4,))["audit_head"] == before


def test_every_accepted_attempt_has_one_outcome_and_no_other_has_any(written: Node) -> None:
    """In the events beneath: an outcome names its attempt and follows it."""
    events = export(written.serve)
    attempts = {event["id"]: event for event in events if event["kind"] == "attempt"}
    outcomes = [event for event in events if event["kind"] == "outcome"]
    accepted = [number for number, event in attempts.items() if event["verdict"] == "accepted"]
    assert sorted(event["attempt"] for event in outcomes) == accepted
    for event in outcomes:
        attempt = attempts[event["attempt"]]
        assert event["id"] > attempt["id"]
        assert {key: event[key] for key in ("push", "ref", "new")} == {
            key: attempt[key] for key in ("push", "ref", "new")
        }


def tamper(serve: Serve, *statements: str) -> None:
    """Change the database as somebody with sqlite3 and the right to write can."""
    with closing(sqlite3.connect(serve.state / "gitmirror.db", isolation_level=None)) as connection:
        for trigger in ("audit_no_update", "audit_no_delete"):
            connection.execute(f"DROP TRIGGER {trigger}")
        for statement in statements:
            connection.execute(statement)


def verify(serve: Serve, *options: str) -> tuple[int, str]:
    """Exit code and words of `audit verify`."""
    done = serve.cli("audit", "verify", *options, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    "column", ["at", "repo", "session", "ref", "old", "new", "verdict", "reason", "client", "push"]
)
def test_a_changed_event_is_named(log_copy: Serve, column: str) -> None:
    """Any column of any event: `audit verify` says which and exits 3."""
    value = "accepted" if column == "verdict" else "x"
    where = "verdict = 'rejected'" if column == "verdict" else "id > 2"
    target = f"(SELECT min(id) FROM audit_events WHERE {where})"
    with closing(sqlite3.connect(log_copy.state / "gitmirror.db")) as connection:
        [number] = connection.execute(f"SELECT {target}").fetchone()
    tamper(log_copy, f"UPDATE audit_events SET {column} = '{value}' WHERE id = {number}")
    code, said = verify(log_copy)
    assert code == 3
    assert f"broken at event {number}: its content does not match its hash" in said


def test_a_changed_event_with_a_hash_to_match_breaks_the_next(log_copy: Serve) -> None:
    """Who computes the hash anew breaks the chain behind it."""
    events = export(log_copy)
    event = events[2] | {"client": "10.0.0.1"}
    body = {key: value for key, value in event.items() if key != "hash"}
    digest = hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    tamper(log_copy, f"UPDATE audit_events SET client = '10.0.0.1', hash = '{digest}' WHERE id = 3")
    code, said = verify(log_copy)
    assert code == 3
    assert "broken at event 4" in said


@pytest.mark.parametrize("number", [1, 4])
def test_a_deleted_event_is_named(log_copy: Serve, number: int) -> None:
    """The report names the first missing event."""
    tamper(log_copy, f"DELETE FROM audit_events WHERE id = {number}")
    code, said = verify(log_copy)
    assert code == 3
    assert f"broken at event {number}: it is missing" in said


def test_two_events_that_change_places_are_found(log_copy: Serve) -> None:
    """The order is part of what is hashed."""
    tamper(
        log_copy,
        "UPDATE audit_events SET attempt = NULL",
        "UPDATE audit_events SET id = -1 WHERE id = 2",
        "UPDATE audit_events SET id = 2 WHERE id = 3",
        "UPDATE audit_events SET id = 3 WHERE id = -1",
    )
    assert verify(log_copy)[0] == 3


@pytest.mark.slow
def test_a_cut_off_end_is_found(log_copy: Serve) -> None:
    """The end is missed by the count that SQLite keeps; with that changed too, by a head that was noted before."""
    events = export(log_copy)
    head, last = events[-1]["hash"], events[-1]["id"]
    assert verify(log_copy, "--head", head)[0] == 0
    assert verify(log_copy, "--head", events[3]["hash"])[0] == 0
    tamper(log_copy, f"DELETE FROM audit_events WHERE id >= {last - 1}")
    code, said = verify(log_copy)
    assert code == 3
    assert f"broken at event {last - 1}" in said
    with closing(sqlite3.connect(log_copy.state / "gitmirror.db", isolation_level=None)) as connection:
        connection.execute(f"UPDATE sqlite_sequence SET seq = {last - 2} WHERE name = 'audit_events'")
    assert verify(log_copy)[0] == 0
    code, said = verify(log_copy, "--head", head)
    assert code == 3
    assert head in said


def test_the_log_cannot_be_changed_by_mistake(log_copy: Serve) -> None:
    """Updates and deletes are refused by the database itself."""
    with closing(sqlite3.connect(log_copy.state / "gitmirror.db")) as connection:
        for statement in ("UPDATE audit_events SET client = 'x'", "DELETE FROM audit_events"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                connection.execute(statement)


@pytest.mark.slow
def test_repeated_refusals_are_rolled_up(own_node: Node) -> None:
    """Past twenty from one address they are counted into one row; accepted ones always have their own."""
    node, tip = own_node, own_node.tip
    for number in range(45):
        assert not push(node.serve, (ZERO, tip, f"refs/heads/flood{number}"))
        if number % 10 == 0:
            assert push(node.serve, (ZERO, tip, f"refs/agents/good{number}"))
    assert len([row for row in audit(node.serve) if row["verdict"] == "rejected"]) == 20
    assert node.serve.terminate() == 0
    rows = audit(node.serve)
    assert rows[0]["reason"].startswith("25 more refused refs from this address, the last: branches and tags")
    assert rows[0]["ref"] == "refs/heads/flood44"
    assert len([row for row in rows if row["verdict"] == "rejected"]) == 21
    assert [row["outcome"] for row in rows if row["verdict"] == "accepted"] == ["applied"] * 5
    assert verify(node.serve)[0] == 0


@pytest.mark.slow
def test_fifty_agents_at_once(own_node: Node, tmp_path: Path) -> None:
    """Fifty pushes of git in the same moment: all recorded, all applied, the chain intact, nobody told to come back."""
    node = own_node
    guest = node.guest(tmp_path / "guest", "--depth=1")
    tree, tip = git("rev-parse", "HEAD^{tree}", cwd=guest), node.tip
    commits = [git("commit-tree", "-p", tip, "-m", f"agent {number}", tree, cwd=guest) for number in range(50)]
    pushes = [
        subprocess.Popen(["git", "push", "origin", f"{commit}:refs/agents/agent-{number}"], cwd=guest, stderr=PIPE)
        for number, commit in enumerate(commits)
    ]
    for each in pushes:
        said = each.communicate(timeout=90)[1].decode()
        assert each.returncode == 0, said
        assert "locked" not in said
    entries = assert_log_is_true(node)
    assert len(entries) == 50
    assert {entry["outcome"] for entry in entries} == {"applied"}
    assert "locked" not in node.serve.log()
    found = refs(node.mirror)
    assert [found[f"refs/agents/agent-{number}"] for number in range(50)] == commits


def test_many_agents_on_one_session_each_have_a_true_outcome(own_node: Node) -> None:
    """Pushes to one ref at once: each row is what receive-pack did, and the applied ones lead from one to the next."""
    node = own_node
    tree, tip = git("rev-parse", "main^{tree}", cwd=node.mirror), node.tip
    commits = [git("commit-tree", "-p", tip, "-m", f"rival {number}", tree, cwd=node.mirror) for number in range(12)]
    pushes = [
        subprocess.Popen(
            ["git", "push", "--quiet", "--force", node.url, f"{commit}:refs/agents/shared"],
            cwd=node.mirror,
            stderr=PIPE,
        )
        for commit in commits
    ]
    codes = {
        commit: (each.communicate(timeout=60), each.returncode)[1] for commit, each in zip(commits, pushes, strict=True)
    }
    outcomes = {row["new"]: row["outcome"] for row in audit(node.serve)}
    assert outcomes == {commit: "applied" if code == 0 else "failed" for commit, code in codes.items()}
    applied = {row["old"]: row["new"] for row in audit(node.serve) if row["outcome"] == "applied"}
    at, count = None, 0
    while at in applied:
        at, count = applied.pop(at), count + 1
    assert (at, count, applied) == (
        refs(node.mirror)["refs/agents/shared"],
        list(outcomes.values()).count("applied"),
        {},
    )


@pytest.mark.slow
def test_the_log_outlives_its_repository(serve_factory: ServeFactory, upstream: HttpUpstream) -> None:
    """Removing and purging a repository takes nothing out of the log."""
    serve = serve_factory(refresh=SETTLED).start()
    serve.cli("add-repo", upstream.url(WIDGETS))
    tip = git("rev-parse", "main", cwd=serve.mirror(WIDGETS))
    assert push(serve, (ZERO, tip, "refs/agents/s1"))
    serve.cli("remove-repo", WIDGETS, "--purge", "--yes")
    assert entry_of(serve, "refs/agents/s1")["outcome"] == "applied"
    serve.restart()
    assert verify(serve)[0] == 0
