"""The guard when something is broken: it fails closed, says so, and comes back when it is mended."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import WIDGETS, ServeFactory
from tests.serving.conftest import SETTLED, Node, assert_log_is_true, audit, entry_of, make_turn
from tests.support.gitutil import git, git_result, refs, wait_until
from tests.support.pkt import ZERO, PushConnection, push_bytes
from tests.support.serve import Serve
from tests.support.upstream import HttpUpstream

# The database


def replace_database(serve: Serve) -> Path:
    """Put a directory in the place of the database; return where the database is now."""
    database, aside = serve.state / "gitmirror.db", serve.state / "aside.db"
    database.rename(aside)
    database.mkdir()
    return aside


def put_back(serve: Serve) -> None:
    """Undo `replace_database`."""
    (serve.state / "gitmirror.db").rmdir()
    (serve.state / "aside.db").rename(serve.state / "gitmirror.db")


@pytest.mark.slow
def test_a_push_without_a_log_to_write_to_is_refused(own_node: Node, tmp_path: Path) -> None:
    """With the database replaced by a directory: pushes are refused with words, reads served; mended, all is well."""
    node = own_node
    guest = node.guest(tmp_path / "guest")
    git("push", "--quiet", "origin", "HEAD:refs/agents/before", cwd=guest)
    before = refs(node.mirror)
    replace_database(node.serve)
    code, _, said = git_result("push", "origin", "HEAD:refs/agents/s1", cwd=guest)
    assert code == 1
    assert "remote: gitmirror: pushes are off: the audit log cannot be written" in said
    assert "remote: gitmirror: the operator must fix it (see `doctor`)" in said
    assert "[remote rejected] HEAD -> refs/agents/s1 (pushes are off: the audit log cannot be written)" in said
    # What is refused anyway says why, and not that something is broken.
    code, _, said = git_result("push", "origin", "HEAD~0:refs/heads/other", cwd=guest)
    assert code == 1
    assert refs(node.mirror) == before
    node.guest(tmp_path / "other")
    warnings = node.serve.cli_json("status", codes=(0, 3))["warnings"]
    assert any("pushes are off" in each and "gitmirror.db is not a file" in each for each in warnings), warnings
    assert node.serve.cli("audit", check=False).returncode == 1
    put_back(node.serve)
    git("push", "--quiet", "origin", "HEAD:refs/agents/s1", cwd=guest)
    entries = assert_log_is_true(node)
    assert {entry["ref"] for entry in entries if entry["outcome"] == "applied"} == {
        "refs/agents/s1",
        "refs/agents/before",
    }
    assert node.serve.cli_json("status")["warnings"] == []


@pytest.mark.slow
def test_a_log_that_is_lost_in_the_middle_of_a_push_is_made_up_for(own_node: Node) -> None:
    """The outcome that could not be written is settled later, and truly."""
    node = own_node
    turn = make_turn(node.mirror, "the log is lost", size=100_000)
    data = push_bytes([(ZERO, turn.commit, "refs/agents/lost")], turn.pack)
    with PushConnection(*node.serve.git_address, f"/{WIDGETS}") as guest:
        guest.send(data[:5000])
        wait_until(lambda: audit(node.serve), message="the attempt is logged")
        replace_database(node.serve)
        guest.send(data[5000:])
        guest.read_report()
    put_back(node.serve)
    assert entry_of(node.serve, "refs/agents/lost")["outcome"] == "pending"
    node.serve.restart()
    [entry] = assert_log_is_true(node)
    assert entry["outcome"] == "applied"


def test_a_database_that_is_busy_for_a_moment_stops_nobody(own_node: Node, tmp_path: Path) -> None:
    """While another process holds the write lock a push waits, and fetches, `status` and other guests do not."""
    node = own_node
    script = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None); c.execute('BEGIN IMMEDIATE');"
        "print('held', flush=True); sys.stdin.read()"
    )
    argv = [sys.executable, "-c", script, str(node.serve.state / "gitmirror.db")]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdin is not None
        assert holder.stdout.readline() == b"held\n"
        with PushConnection(*node.serve.git_address, f"/{WIDGETS}") as guest:
            guest.send(push_bytes([(ZERO, node.tip, "refs/agents/waits")]))
            status = subprocess.Popen(
                [*node.serve.command, "--state", str(node.serve.state), "status", "--json"],
                cwd=node.serve.cwd,
                env=node.serve.env,
                stdout=subprocess.DEVNULL,
            )
            for number in range(5):
                assert git("ls-remote", node.url, "HEAD", timeout=60).startswith(node.tip)
                node.serve.clone(tmp_path / f"clone{number}", WIDGETS, "--depth=1", "--bare")
            assert "refs/agents/waits" not in refs(node.mirror)
            holder.stdin.close()
            assert guest.read_report().accepted
            assert status.wait(60) == 0
    assert_log_is_true(node)


# The hook that is tampered with


def not_executable(hooks: Path) -> None:
    """As `chmod -x` does."""
    (hooks / "pre-receive").chmod(0o644)


def removed(hooks: Path) -> None:
    """As `rm` does."""
    (hooks / "pre-receive").unlink()


def emptied(hooks: Path) -> None:
    """An empty script, still executable."""
    (hooks / "pre-receive").write_text("")


def replaced(hooks: Path) -> None:
    """Another file in its place, of the same size and time."""
    hook = hooks / "pre-receive"
    status = hook.stat()
    (hooks / "new").write_bytes(b"#!/bin/sh\nexit 0\n".ljust(status.st_size, b"#"))
    (hooks / "new").chmod(0o755)
    (hooks / "new").rename(hook)
    os.utime(hook, ns=(status.st_atime_ns, status.st_mtime_ns))


def rewritten(hooks: Path) -> None:
    """The same file with other bytes and the old time."""
    hook = hooks / "policy.py"
    status = hook.stat()
    text = hook.read_text()
    hook.write_text(text.replace('"refs/agents/"', '"refs/xxxxxx/"'))
    assert hook.stat().st_size == status.st_size
    os.utime(hook, ns=(status.st_atime_ns, status.st_mtime_ns))


def all_gone(hooks: Path) -> None:
    """The whole directory removed."""
    shutil.rmtree(hooks)


def program_gone(hooks: Path) -> None:
    """What the hook runs is missing."""
    (hooks / "pre_receive.py").unlink()


def turns_gone(hooks: Path) -> None:
    """The hook that keeps every turn is missing."""
    (hooks / "update").unlink()


TAMPERINGS = (not_executable, removed, emptied, replaced, rewritten, all_gone, program_gone, turns_gone)


@pytest.mark.slow
@pytest.mark.parametrize("tamper", TAMPERINGS, ids=lambda tamper: tamper.__name__)
def test_a_hook_that_is_not_what_was_installed_turns_pushes_off(
    own_node: Node, tmp_path: Path, tamper: Callable[[Path], None]
) -> None:
    """git would skip the hook and accept the push. So it is refused before, logged and reported; a restart mends it."""
    node = own_node
    guest = node.guest(tmp_path / "guest")
    before = refs(node.mirror)
    tamper(node.serve.state / "run" / "hooks")
    code, _, said = git_result("push", "origin", "HEAD:refs/agents/s1", cwd=guest)
    assert code == 1
    assert "remote: gitmirror: pushes are off: the hook " in said
    assert "the operator must fix it and restart gitmirror (see `doctor`)" in said
    assert git_result("push", "origin", "HEAD:refs/agents/s2", cwd=guest)[0] == 1
    assert refs(node.mirror) == before
    rows = audit(node.serve)
    assert [(row["ref"], row["verdict"], row["outcome"]) for row in rows] == [
        ("refs/agents/s2", "rejected", None),
        ("refs/agents/s1", "rejected", None),
    ]
    assert rows[0]["reason"].startswith("pushes are off: the hook ")
    assert any("pushes are off: the hook" in each for each in node.serve.cli_json("status")["warnings"])
    doctor = node.serve.cli("doctor", check=False)
    assert doctor.returncode == 3
    assert "pushes are off: the hook" in doctor.stdout
    node.guest(tmp_path / "other")
    node.serve.restart()
    git("push", "--quiet", node.url, "HEAD:refs/agents/s1", cwd=guest)
    assert_log_is_true(node)


@pytest.mark.slow
def test_a_git_that_keeps_no_log_of_refs_turns_pushes_off(
    serve_factory: ServeFactory, upstream: HttpUpstream, tmp_path: Path
) -> None:
    """The outcome of a push could not be known. The proof at the start finds this, and fetches are served."""
    program, real = tmp_path / "bin" / "git", shutil.which("git")
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {real} -c core.logAllRefUpdates=false "$@"\n')
    program.chmod(0o755)
    env = {"PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"}
    node = Node(serve_factory(repos=[upstream.url(WIDGETS)], env=env, refresh=SETTLED).start(), upstream)
    node.serve.wait_for_repo(WIDGETS)
    guest = node.guest(tmp_path / "guest")
    code, _, said = git_result("push", "origin", "HEAD:refs/agents/s1", cwd=guest)
    assert code == 1
    assert "remote: gitmirror: pushes are off: git keeps no log of who moves a ref" in said
    assert entry_of(node.serve, "refs/agents/s1")["verdict"] == "rejected"
