"""A damaged or lost database: serve says which command mends it, and the command does, without losing a turn."""

from __future__ import annotations

import re
import shlex
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.backup.conftest import back_up, record_session, recorded
from tests.conftest import WIDGETS
from tests.recording.conftest import AGENTS, ARCHIVE, record_turn, session_of, turns_of
from tests.serving.conftest import Node, commit_turn, wait_settled
from tests.support.gitutil import git_result, wait_until
from tests.support.serve import Serve


def scramble(serve: Serve) -> None:
    """Bytes in the middle are others: the beginning of every page but the first ones."""
    database = serve.state / "gitmirror.db"
    content = bytearray(database.read_bytes())
    for page in range(4096 * 8, len(content), 4096):
        content[page : page + 8] = b"\xff" * 8
    database.write_bytes(content)


def truncate(serve: Serve) -> None:
    """The second half is gone."""
    database = serve.state / "gitmirror.db"
    content = database.read_bytes()
    database.write_bytes(content[: len(content) // 8192 * 4096])


def remove(serve: Serve) -> None:
    """The file is gone, with all that SQLite keeps beside it."""
    for path in serve.state.glob("gitmirror.db*"):
        path.unlink()


def remove_wal(serve: Serve) -> None:
    """What was written last is gone."""
    for name in ("gitmirror.db-wal", "gitmirror.db-shm"):
        (serve.state / name).unlink()


def into_file(serve: Serve) -> None:
    """Nothing is in the WAL any more: what SQLite does by itself once there are enough pages in it."""
    with closing(sqlite3.connect(serve.state / "gitmirror.db")) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def as_agents(ref: str) -> str:
    """The ref of a session as if it was not archived."""
    return ref.replace(ARCHIVE, AGENTS)


@pytest.mark.slow
@pytest.mark.parametrize("damage", [scramble, truncate, remove, remove_wal], ids=lambda damage: damage.__name__)
def test_the_command_that_is_named_brings_it_back(
    backed: Callable[..., Node], target: Path, tmp_path: Path, damage: Callable[[Serve], None]
) -> None:
    """Guests are served all the while; turns that the backup lacks are recorded again, and pushes go on."""
    node = backed(to=str(target), every="1d")
    node.serve.keep_ports()
    guest = tmp_path / "guest"
    record_session(node, guest, "s1")
    back_up(node.serve, target)
    newer = record_session(node, guest, "s2", 1)
    wait_settled(node.serve)
    refs_before, turns_before = recorded(node.mirror), turns_of(node, "s1")
    backups = sorted(target.glob("manifests/*"))
    if damage is not remove_wal:
        into_file(node.serve)
    node.serve.kill()
    damage(node.serve)
    if damage is not remove_wal:
        assert f"restore {target}" in node.serve.cli("audit", "verify", check=False).stderr
        assert f"restore {target}" in node.serve.cli("doctor", check=False).stdout

    node.serve.start()
    node.serve.clone(tmp_path / "meanwhile", WIDGETS)
    commit_turn(guest, "refused")
    assert git_result("push", "--force", "origin", f"HEAD:{AGENTS}s3", cwd=guest)[0] != 0
    status = node.serve.cli_json("status", codes=(3,))
    assert status["pushes"]["off"]
    advice = f"gitmirror.pyz restore {target} --state {node.serve.state} --database --yes"
    for told in (status["pushes"]["mend"], node.serve.cli("doctor", check=False).stdout, node.serve.log()):
        assert advice in told, told
    assert sorted(target.glob("manifests/*")) == backups, "what is left is not backed up in place of what was"

    commands = re.findall(r"`(.*?)`", status["pushes"]["mend"])[0].split("; ")
    assert [command.split()[1] for command in commands] == ["stop", "restore", "start"]
    node.serve.terminate()
    done = node.serve.cli(*shlex.split(commands[1])[1:])
    assert "1 turns newer than the backup are kept" in done.stderr
    node.serve.start()
    node.serve.clone(tmp_path / "after", WIDGETS)
    wait_until(lambda: session_of(node, "s2"), message="the newer turn is recorded again")
    assert [turn.commit for turn in turns_of(node, "s2")] == newer and turns_of(node, "s1") == turns_before
    # A session that was found is as old as its commit, so retention may have archived it already.
    assert {as_agents(ref): oid for ref, oid in recorded(node.mirror).items()} == refs_before
    status = node.serve.cli_json("status", codes=(0,))
    assert "were found in mirrors" in str(status["warnings"]) and status["pushes"]["off"] is None
    last = record_turn(guest, "s3", "after")
    assert [turn.commit for turn in turns_of(node, "s3")] == [last]
    assert node.serve.cli("audit", "verify").returncode == 0
    assert back_up(node.serve, target)["turns"] == 4
    assert node.serve.cli("doctor", check=False).returncode == 3, "of the turns that were found, and nothing else"


@pytest.mark.slow
def test_a_database_that_is_damaged_while_serve_runs_turns_pushes_off(
    backed: Callable[..., Node], target: Path
) -> None:
    """A push that meets the damage tells, and a file put back in its place ends it, without a restart."""
    node = backed(to=str(target), every="1d")
    back_up(node.serve, target)
    backups = sorted(target.glob("manifests/*"))
    into_file(node.serve)
    database = node.serve.state / "gitmirror.db"
    sound = database.read_bytes()
    scramble(node.serve)
    done = node.serve.cli("audit", "verify", check=False)
    assert done.returncode == 1 and f"restore {target}" in done.stderr
    assert node.serve.cli("backup", check=False).returncode == 1
    assert sorted(target.glob("manifests/*")) == backups, "the damaged one is not backed up"
    wait_until(lambda: node.serve.status()["pushes"]["off"], message="pushes are off")
    remove(node.serve)
    database.write_bytes(sound)
    wait_until(lambda: node.serve.status()["pushes"]["off"] is None, message="pushes are on")
