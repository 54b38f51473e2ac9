"""A backup of a node that serves, and the node that is restored from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.backup.conftest import back_up, record_session, recorded, told, verify
from tests.conftest import WIDGETS, ServeFactory
from tests.recording.conftest import TURNS, Book, record_turn
from tests.serving.conftest import SETTLED, Node
from tests.serving.fetch.conftest import metric
from tests.support.generate import add_commit
from tests.support.gitutil import fsck, git, git_result, wait_until
from tests.support.serve import Serve


def restored(node: Node, factory: ServeFactory, target: Path, name: str = "restored") -> Node:
    """A node on what `restore` makes of the newest backup; not started."""
    serve = factory(name, repos=[node.upstream.url(WIDGETS)], refresh=SETTLED)
    report = serve.cli_json("restore", str(target), codes=(0,))
    assert report["state"] == str(serve.state)
    return Node(serve, node.upstream)


@pytest.mark.slow
def test_a_restored_node_has_everything_that_was_recorded(
    backed: Callable[..., Node], serve_factory: ServeFactory, target: Path, tmp_path: Path
) -> None:
    """Sessions, turns, diffs, the log, tokens; its pushes go on with ids above."""
    node = backed()
    commits = record_session(node, tmp_path / "guest", "s1", 3) + record_session(node, tmp_path / "guest", "s2")
    node.serve.cli("token", "issue", "--repo", WIDGETS, "--ttl", "1h")
    node.serve.cli("session", "keep", WIDGETS, "s2")
    report = back_up(node.serve, target)
    assert report["turns"] == 5 and report["repositories"] == 1 and not report["problems"]
    assert verify(node.serve, target) == []
    before, refs_before = told(node.serve), recorded(node.mirror)
    node.serve.terminate()

    other = restored(node, serve_factory, target)
    assert told(other.serve) == before
    assert recorded(other.mirror) == refs_before
    other.serve.start()
    other.serve.wait_for_repo(WIDGETS)
    assert told(other.serve) == before
    assert other.serve.cli("audit", "verify").returncode == 0
    assert not other.serve.cli_json("status")["warnings"]
    assert_all_is_searched(other.serve)
    assert {row["session"] for row in other.serve.cli_json("sessions", "--path", "turn.txt")} == {"s1", "s2"}
    fsck(other.mirror)
    other.serve.cli("session", "checkout", WIDGETS, "s1", str(tmp_path / "replay"), "--turn", "1")
    assert git("rev-parse", "HEAD", cwd=tmp_path / "replay") == commits[0]

    last = max(int(ref.removeprefix(TURNS)) for ref in refs_before if ref.startswith(TURNS))
    guest = other.guest(tmp_path / "another")
    commit = record_turn(guest, "s3", "after")
    new = recorded(other.mirror).items() - refs_before.items()
    assert {oid for _, oid in new} == {commit}
    assert all(int(ref.removeprefix(TURNS)) > last for ref, _ in new if ref.startswith(TURNS))


@pytest.mark.slow
def test_a_second_backup_writes_only_what_is_new(backed: Callable[..., Node], target: Path, tmp_path: Path) -> None:
    """No bundle is written again; without news no bundle is written."""
    node = backed()
    record_session(node, tmp_path / "guest", "s1")
    back_up(node.serve, target)
    bundles = {path: path.read_bytes() for path in target.rglob("*.bundle")}
    assert len(bundles) == 2, "the history, and the turns"
    back_up(node.serve, target)
    assert {path: path.read_bytes() for path in target.rglob("*.bundle")} == bundles

    record_session(node, tmp_path / "guest", "s2", 1)
    back_up(node.serve, target)
    after = {path: path.read_bytes() for path in target.rglob("*.bundle")}
    assert bundles.items() <= after.items()
    [new] = after.keys() - bundles.keys()
    assert new.stat().st_size < 2000 < sum(map(len, bundles.values()))
    assert verify(node.serve, target) == []


@pytest.mark.slow
@pytest.mark.parametrize("goes", ["force-pushed", "down"])
def test_nothing_is_needed_of_the_upstream(
    backed: Callable[..., Node], serve_factory: ServeFactory, target: Path, tmp_path: Path, goes: str
) -> None:
    """What a session started from may be gone there, or all of it: the sessions are restored all the same."""
    node = backed()
    commits = record_session(node, tmp_path / "guest", "s1")
    back_up(node.serve, target)
    before = told(node.serve)
    node.serve.terminate()
    bare = node.upstream.path(WIDGETS)
    if goes == "force-pushed":
        # Every branch and tag goes, and with them every commit that the session stands on.
        for line in git("for-each-ref", "--format=%(refname)", cwd=bare).splitlines():
            git("update-ref", "-d", line, cwd=bare)
        add_commit(bare, "main", {"README": "another history"})
        git("reflog", "expire", "--expire=all", "--all", cwd=bare)
        git("gc", "--quiet", "--prune=now", cwd=bare)
    else:
        node.upstream.refuse()

    other = restored(node, serve_factory, target)
    other.serve.start()
    assert told(other.serve) == before
    if goes == "down":
        # Nobody takes a mirror without branches for the upstream as it is.
        wait_until(lambda: other.serve.status()["repos"][0]["last_error"], message="a refresh failed")
        assert any("restored from a backup" in warning for warning in other.serve.cli_json("status")["warnings"])
        assert git_result("ls-remote", other.url)[0] != 0
        node.upstream.restore()
        other.serve.cli("refresh", WIDGETS)
    other.serve.wait_for_repo(WIDGETS)
    assert other.tip == git("rev-parse", "refs/heads/main", cwd=bare)
    assert told(other.serve) == before
    assert not other.serve.cli_json("status")["warnings"]
    git("cat-file", "-e", commits[0], cwd=other.mirror)
    fsck(other.mirror)
    other.guest(tmp_path / "another")


@pytest.mark.slow
def test_turns_that_the_copied_log_does_not_know_are_found(
    backed: Callable[..., Node], serve_factory: ServeFactory, target: Path, tmp_path: Path
) -> None:
    """A push that ended between the copy of the database and the look at the refs is in the bundles."""
    node = backed()
    record_session(node, tmp_path / "guest", "s1")
    # The older database stands for a copy that was made before the push.
    node.serve.terminate()
    old = (node.serve.state / "gitmirror.db").read_bytes(), (node.serve.state / "audit-head").read_bytes()
    node.serve.keep_ports()
    node.serve.start()
    [late] = record_session(node, tmp_path / "guest", "s2", 1)
    node.serve.terminate()
    (node.serve.state / "gitmirror.db").write_bytes(old[0])
    (node.serve.state / "audit-head").write_bytes(old[1])
    back_up(node.serve, target)
    assert verify(node.serve, target) == []

    other = restored(node, serve_factory, target)
    other.serve.start()
    wait_until(
        lambda: [each for each in other.serve.cli_json("sessions") if each["session"] == "s2"],
        message="the turn is booked",
    )
    assert late in recorded(other.mirror).values()
    assert other.serve.cli("audit", "verify").returncode == 0
    assert_all_is_searched(other.serve)
    assert {row["session"] for row in other.serve.cli_json("sessions", "--path", "turn.txt")} == {"s1", "s2"}


def assert_all_is_searched(serve: Serve) -> None:
    """Every turn is indexed, and nothing is left of turns that there are not."""
    with Book(serve) as book:
        wait_until(lambda: book.stores.turn_index.pending() == 0, message="every turn is indexed")
        with book.stores.database.reading() as connection:
            assert not list(connection.query("PRAGMA foreign_key_check"))


def backup_check(serve: Serve) -> dict[str, Any]:
    """What `doctor` says of the backups."""
    [check] = [check for check in serve.cli_json("doctor", codes=(0, 3)) if check["name"] == "backup"]
    return dict(check)


@pytest.mark.slow
def test_serve_backs_up_by_itself(backed: Callable[..., Node], target: Path, tmp_path: Path) -> None:
    """Every `every`; `status` tells of the last one, and warns of one that fails."""
    node = backed(to=str(target), every="1s")
    record_session(node, tmp_path / "guest", "s1")

    def turns() -> int:
        found = 0
        for path in sorted(target.glob("manifests/*.json"))[-1:]:
            repositories = json.loads(path.read_text())["repositories"].values()
            found = sum(ref.startswith(TURNS) for each in repositories for ref in each["refs"])
        return found

    wait_until(lambda: turns() == 2, message="a backup has both turns")
    status = node.serve.cli_json("status")
    assert status["backup"]["to"] == str(target) and status["backup"]["bytes"] > 0
    assert status["backup"]["at"] and status["backup"]["error"] is None and not status["warnings"]
    assert 0 <= status["backup"]["age"] < 60 and " ago) to " in node.serve.cli("status").stdout
    assert 0 <= metric(node.serve, "gitmirror_backup_age_seconds") < 60
    assert metric(node.serve, "gitmirror_backup_failing") == 0
    assert backup_check(node.serve)["ok"] and " old" in backup_check(node.serve)["found"]

    moved = target.rename(tmp_path / "moved")
    target.write_text("not a directory")
    wait_until(lambda: node.serve.status()["backup"]["error"], message="a backup fails")
    status = node.serve.cli_json("status")
    assert status["backup"]["at"], "the last success is told"
    assert any(f"backups to {target} fail" in warning for warning in status["warnings"])
    assert metric(node.serve, "gitmirror_backup_failing") == 1
    assert not backup_check(node.serve)["ok"]
    target.unlink()
    moved.rename(target)
    wait_until(lambda: not node.serve.status()["backup"]["error"], message="backups go on")


@pytest.mark.slow
def test_restore_refuses_a_state_directory_that_was_used(
    backed: Callable[..., Node], target: Path, tmp_path: Path
) -> None:
    """With --yes what was there is moved aside; not even then beside a running serve."""
    node = backed()
    record_session(node, tmp_path / "guest", "s1")
    back_up(node.serve, target)
    assert node.serve.cli("restore", str(target), "--yes", check=False).returncode == 1
    before, log = told(node.serve), node.serve.cli("audit", "export").stdout
    node.serve.terminate()
    done = node.serve.cli("restore", str(target), check=False)
    assert done.returncode == 2 and "--yes" in done.stderr
    assert node.serve.cli("audit", "export").stdout == log

    report = node.serve.cli_json("restore", str(target), "--yes", codes=(0,))
    aside = Path(report["aside"])
    assert (aside / "gitmirror.db").exists() and recorded(aside / "mirrors" / f"{WIDGETS}.git")
    node.serve.start()
    node.serve.wait_for_repo(WIDGETS)
    assert told(node.serve) == before
    assert back_up(node.serve, target)["turns"] == 2
