"""The log is older than its mirrors, or lost: no acknowledged turn is lost, and no report is false."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from appliance.core.layout import Layout
from tests.conftest import WIDGETS
from tests.recording.conftest import AGENTS, TURNS, Book, record_turn
from tests.serving.conftest import Node, audit, commit_turn, wait_settled
from tests.support.gitutil import git, git_result, refs, wait_until
from tests.support.privileges import bound_by_modes
from tests.support.serve import Serve


def database(serve: Serve) -> Path:
    """Where the database is."""
    return Layout(serve.state).database


def without_database(serve: Serve) -> None:
    """Delete the database and what SQLite keeps beside it."""
    for path in database(serve).parent.glob("gitmirror.db*"):
        path.unlink()


def copy_of(serve: Serve, to: Path) -> Path:
    """A backup as SQLite makes one."""
    with closing(sqlite3.connect(database(serve))) as source, closing(sqlite3.connect(to)) as target:
        source.backup(target)
    return to


def put_back(serve: Serve, backup: Path) -> None:
    """Restore a backup, with nothing of the newer database beside it."""
    without_database(serve)
    shutil.copyfile(backup, database(serve))


def held(node: Node) -> set[str]:
    """The commits that turn refs hold."""
    return {oid for ref, oid in refs(node.mirror).items() if ref.startswith(TURNS)}


def warnings(serve: Serve) -> str:
    """What `status` warns of."""
    return "\n".join(serve.status()["warnings"])


def booked(node: Node) -> set[str]:
    """Every commit that is a turn of a session."""
    with Book(node.serve) as book:
        sessions = book.stores.sessions.all(WIDGETS)
        return {turn.commit for row in sessions for turn in book.turns(row["session"])}


def push(guest: Path, session: str) -> tuple[int, str]:
    """Push a turn; the exit code and what the guest was told."""
    code, out, err = git_result("push", "--force", "origin", f"HEAD:{AGENTS}{session}", cwd=guest)
    return code, out + err


def lose(how: str, serve: Serve, backup: Path) -> None:
    """What happens to the database while serve is down."""
    if how == "older":
        put_back(serve, backup)
    elif how == "gone":
        without_database(serve)
    else:
        # Killed, so nothing was brought from the WAL into the file; only the file survives.
        for name in ("gitmirror.db-wal", "gitmirror.db-shm"):
            (serve.state / name).unlink()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["older", "gone", "without its WAL"])
def test_no_turn_is_lost_with_the_log(make_node: Callable[..., Node], tmp_path: Path, how: str) -> None:
    """Reads continue, pushes wait for the operator, and every acknowledged commit stays and is recorded again."""
    node = make_node()
    node.serve.keep_ports()
    guest = node.guest(tmp_path / "guest")
    told = [record_turn(guest, "s1", "before")]
    backup = copy_of(node.serve, tmp_path / "backup.db")
    node.serve.restart()
    for number in range(2):
        # Rewritten each time: nothing but its own ref holds the turn before.
        git("reset", "--quiet", "--hard", "HEAD~1", cwd=guest)
        told.append(record_turn(guest, "s1", f"turn {number}"))
    wait_settled(node.serve)
    node.serve.kill()
    lose(how, node.serve, backup)

    node.serve.start()
    node.serve.wait_for_repo(WIDGETS)
    node.guest(tmp_path / "reader")
    assert held(node) >= set(told)
    assert "pushes are off" in warnings(node.serve) and "audit accept-loss" in warnings(node.serve)
    commit_turn(guest, "refused")
    code, said = push(guest, "s2")
    assert code != 0 and "audit accept-loss" in said, said
    wait_until(lambda: booked(node) >= set(told), message="every turn is booked anew")
    found = [entry for entry in audit(node.serve) if entry["client"] == "unknown"]
    assert found and all("found" in entry["reason"] for entry in found)
    assert "audit accept-loss" in node.serve.here("doctor", codes=(3,))
    node.serve.here("audit", "verify", codes=(3,))

    # A second start does not make it less true.
    node.serve.kill()
    node.serve.start()
    node.serve.wait_for_repo(WIDGETS)
    assert "pushes are off" in warnings(node.serve)

    assert "pushes" in node.serve.cli("audit", "accept-loss").stdout
    assert "pushes are off" not in warnings(node.serve)
    for number in range(3):
        told.append(record_turn(guest, "s3", f"after {number}"))
        git("reset", "--quiet", "--hard", "HEAD~1", cwd=guest)
    wait_settled(node.serve)
    assert held(node) >= set(told) and booked(node) >= set(told)
    node.serve.here("audit", "verify")
    node.serve.here("doctor")


@pytest.mark.slow
def test_commands_make_no_empty_database_in_place_of_a_lost_one(make_node: Callable[..., Node]) -> None:
    """Without serve, errors name the file and the remedy, and no file is created."""
    node = make_node()
    node.serve.terminate()
    without_database(node.serve)
    for command in (["repos"], ["status"], ["sessions"], ["audit"], ["add-repo", node.upstream.url(WIDGETS)]):
        done = node.serve.cli(*command, check=False)
        assert done.returncode == 1 and "gitmirror.db" in done.stderr and "audit accept-loss" in done.stderr, done
    assert not database(node.serve).exists()
    done = node.serve.cli("doctor", check=False)
    assert done.returncode == 3 and "audit accept-loss" in done.stdout


@pytest.mark.slow
def test_a_lost_database_whose_loss_cannot_be_marked_is_done_without(
    make_node: Callable[..., Node], tmp_path: Path
) -> None:
    """As on a full disk: serve starts and serves, no database is made that lacks the mark, and pushes are off."""
    node = make_node()
    node.serve.terminate()
    without_database(node.serve)
    head = Layout(node.serve.state).audit_head
    head.unlink(missing_ok=True)
    head.symlink_to(tmp_path / "nowhere" / "audit-head")
    node.serve.start()
    guest = node.guest(tmp_path / "guest")
    assert not database(node.serve).exists() and "pushes are off" in warnings(node.serve)
    head.unlink()
    node.serve.restart()
    assert database(node.serve).exists() and "audit accept-loss" in warnings(node.serve)
    commit_turn(guest, "refused")
    assert git_result("push", "--force", f"{node.serve.git_url}/{WIDGETS}", f"HEAD:{AGENTS}s1", cwd=guest)[0] != 0


@pytest.mark.slow
def test_a_database_put_back_while_serve_runs_takes_no_push(make_node: Callable[..., Node], tmp_path: Path) -> None:
    """An older file in its place: the log lacks what was told, so the push is refused and nothing is overwritten."""
    node = make_node()
    node.serve.keep_ports()
    guest = node.guest(tmp_path / "guest")
    backup = copy_of(node.serve, tmp_path / "backup.db")
    told = [record_turn(guest, "s1", f"turn {number}") for number in range(3)]
    wait_settled(node.serve)
    put_back(node.serve, backup)
    for _ in range(3):
        commit_turn(guest, "refused")
        code, said = push(guest, "s2")
        assert code != 0 and "audit accept-loss" in said, said
    node.serve.cli("audit", "accept-loss")
    told.append(record_turn(guest, "s2", "taken"))
    wait_settled(node.serve)
    assert held(node) >= set(told)
    wait_until(lambda: booked(node) >= set(told), message="every turn is booked anew")
    node.serve.here("audit", "verify")


@pytest.mark.slow
def test_turns_of_another_node_are_booked_beside_those_of_this_one(
    make_node: Callable[..., Node], tmp_path: Path
) -> None:
    """A mirror has turns with ids that this log assigned to others: both stay, under different ids."""
    node = make_node()
    node.serve.keep_ports()
    guest = node.guest(tmp_path / "guest")
    told = [record_turn(guest, "s1", f"turn {number}") for number in range(2)]
    wait_settled(node.serve)
    foreign = [
        git("commit-tree", "-p", node.tip, "-m", name, f"{told[0]}^{{tree}}", cwd=node.mirror)
        for name in ("one", "two")
    ]
    for number, commit in zip((2, 9000), foreign, strict=True):
        git("update-ref", f"{TURNS}{number}", commit, cwd=node.mirror)
    node.serve.restart()
    node.serve.wait_for_repo(WIDGETS)
    assert "were found" in warnings(node.serve) and "pushes are off" not in warnings(node.serve)
    told += [*foreign, record_turn(guest, "s1", "after")]
    wait_settled(node.serve)
    wait_until(lambda: booked(node) >= set(told), message="every turn is booked anew")
    assert held(node) >= set(told)
    with Book(node.serve) as book:
        assert all(row["kept"] for row in book.stores.sessions.all(WIDGETS) if row["session"].startswith("found-"))
        newest = max(entry["id"] for entry in book.stores.audit.entries())
    assert newest > 9000
    node.serve.here("audit", "verify")


@pytest.mark.slow
def test_verify_tells_of_turns_that_the_log_does_not_know(make_node: Callable[..., Node], tmp_path: Path) -> None:
    """While no serve runs: the chain holds, and yet something is missing from it."""
    node = make_node()
    node.serve.keep_ports()
    guest = node.guest(tmp_path / "guest")
    commit = record_turn(guest, "s1", "turn")
    wait_settled(node.serve)
    node.serve.terminate()
    git("update-ref", f"{TURNS}77", commit, cwd=node.mirror)
    done = node.serve.cli("audit", "verify", check=False)
    assert done.returncode == 3 and "77" in done.stderr and WIDGETS in done.stderr


@pytest.mark.slow
def test_a_mirror_that_cannot_be_read_at_start_is_looked_at_later(
    make_node: Callable[..., Node], tmp_path: Path
) -> None:
    """Its turns are found before its next push, not passed over until the next start."""
    node = make_node()
    node.serve.keep_ports()
    guest = node.guest(tmp_path / "guest")
    commit = record_turn(guest, "s1", "turn")
    wait_settled(node.serve)
    node.serve.terminate()
    foreign = git("commit-tree", "-p", node.tip, "-m", "foreign", f"{commit}^{{tree}}", cwd=node.mirror)
    git("update-ref", f"{TURNS}9000", foreign, cwd=node.mirror)
    git("pack-refs", "--all", cwd=node.mirror)
    # A file mode is no damage that would be healed.
    node.serve.starter = bound_by_modes()
    packed = node.mirror / "packed-refs"
    packed.chmod(0)
    node.serve.start()
    packed.chmod(0o640)
    assert "were found" not in warnings(node.serve)
    record_turn(guest, "s1", "after")
    assert "were found" in warnings(node.serve)
    with Book(node.serve) as book:
        entries = {entry["id"]: entry for entry in book.stores.audit.entries()}
    assert entries[9000]["new"] == foreign and max(entries) > 9000
