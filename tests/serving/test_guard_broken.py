"""The guard when something is broken: it fails closed, says so, and comes back when it is mended."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import WIDGETS
from tests.serving.conftest import Node, assert_log_is_true, audit, entry_of, make_turn
from tests.support.gitutil import clean_env, git, git_result, refs, remote_refs, run_process, wait_until
from tests.support.pkt import EMPTY_PACK, ZERO, PushConnection, pkt, push_bytes, raw_push
from tests.support.serve import Serve

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
    assert "remote: gitmirror: the operator has to mend it (see `doctor`)" in said
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
    assert {entry["ref"] for entry in entries if entry["outcome"] == "applied"} == {"refs/agents/s1", "refs/agents/before"}
    assert node.serve.cli_json("status")["warnings"] == []


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
    import subprocess
    import sys

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
                assert git("ls-remote", node.url, "HEAD", timeout=5).startswith(node.tip)
                node.serve.clone(tmp_path / f"clone{number}", WIDGETS, "--depth=1", "--bare")
            assert "refs/agents/waits" not in refs(node.mirror)
            holder.stdin.close()
            assert guest.read_report().accepted
            assert status.wait(20) == 0
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
    (hooks / "hook.py").unlink()


def journal_gone(hooks: Path) -> None:
    """The hook that tells which refs were committed is missing."""
    (hooks / "reference-transaction").unlink()


TAMPERINGS = (not_executable, removed, emptied, replaced, rewritten, all_gone, program_gone, journal_gone)


@pytest.mark.parametrize("tamper", TAMPERINGS, ids=lambda tamper: tamper.__name__)
def test_a_hook_that_is_not_what_was_installed_turns_pushes_off(
    own_node: Node, tmp_path: Path, tamper: Callable[[Path], None]
) -> None:
    """git would skip the hook and accept the push: so it is refused before, logged, shown, and mended by a restart."""
    node = own_node
    guest = node.guest(tmp_path / "guest")
    before = refs(node.mirror)
    tamper(node.serve.state / "run" / "hooks")
    code, _, said = git_result("push", "origin", "HEAD:refs/agents/s1", cwd=guest)
    assert code == 1
    assert "remote: gitmirror: pushes are off: the hook " in said
    assert "the operator has to mend it and restart gitmirror (see `doctor`)" in said
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


# The hook by itself


def push_past_the_relay(node: Node, ref: str, **environment: str | None) -> str:
    """Push with git daemon itself, configured as `serve` does it; return all that it says."""
    env = clean_env(
        node.serve.home,
        GIT_CONFIG_GLOBAL=str(node.serve.state / "run" / "serving.config"),
        **{"GITMIRROR_PUSH": "test", "GITMIRROR_JOURNAL": os.devnull, **environment},
    )
    daemon = f"{git('--exec-path')}/git-daemon"
    argv = [daemon, "--inetd", "--export-all", "--strict-paths", "--enable=receive-pack", str(node.mirror)]
    data = pkt(f"git-receive-pack {node.mirror}\0") + push_bytes([(ZERO, node.tip, ref)], EMPTY_PACK)
    return run_process(argv, cwd=Path("/"), env=env, input=data).stdout.decode(errors="replace")


def test_the_hook_alone_allows_what_is_allowed(own_node: Node) -> None:
    """What follows proves something only when a push past the relay does work."""
    assert "ok refs/agents/alone" in push_past_the_relay(own_node, "refs/agents/alone")
    assert git("rev-parse", "refs/agents/alone", cwd=own_node.mirror) == own_node.tip


@pytest.mark.parametrize(
    "ref", ["refs/heads/x", "refs/tags/x", "refs/agents/a/b", "refs/agentsx/y", "refs/gitmirror/anchors/x"]
)
def test_the_hook_alone_refuses_every_other_ref(own_node: Node, ref: str) -> None:
    """The second guard does not trust the first."""
    before = refs(own_node.mirror)
    said = push_past_the_relay(own_node, ref)
    assert f"ng {ref} " in said
    assert refs(own_node.mirror) == before


def test_the_hook_alone_refuses_a_push_that_is_in_no_log(own_node: Node) -> None:
    """A receive-pack that `serve` did not start writes nothing."""
    before = refs(own_node.mirror)
    for missing in (None, ""):
        said = push_past_the_relay(own_node, "refs/agents/s1", GITMIRROR_PUSH=missing)
        assert "gitmirror: refused: this push did not come through gitmirror and is in no log" in said
        assert "ng refs/agents/s1 pre-receive hook declined" in said
    assert refs(own_node.mirror) == before


@pytest.mark.parametrize(
    "text",
    ["", "def review(", "raise SystemExit(0)", "def review(commands): return {}", "import os; os._exit(3)", None],
    ids=["empty", "no syntax", "exits", "says yes without its constants", "leaves", "missing"],
)
def test_the_hook_alone_fails_closed(own_node: Node, text: str | None) -> None:
    """A policy that is broken in whatever way refuses everything, also what is allowed."""
    policy = own_node.serve.state / "run" / "hooks" / "policy.py"
    policy.unlink()
    if text is not None:
        policy.write_text(text)
    before = refs(own_node.mirror)
    for ref in ("refs/heads/x", "refs/agents/s1"):
        assert f"ng {ref} pre-receive hook declined" in push_past_the_relay(own_node, ref)
    assert refs(own_node.mirror) == before


def test_a_python_of_the_guests_making_is_not_run(own_node: Node, tmp_path: Path) -> None:
    """Modules and start-up files of the environment do not reach the hook: it runs isolated."""
    (tmp_path / "policy.py").write_text("def review(commands): return {}\nMOST_REFS = 16\nALLOWED = ''\n")
    (tmp_path / "re.py").write_text("raise SystemExit(0)\n")
    (tmp_path / "sitecustomize.py").write_text("import os; os._exit(0)\n")
    said = push_past_the_relay(
        own_node, "refs/heads/x", PYTHONPATH=str(tmp_path), PYTHONSTARTUP=str(tmp_path / "re.py"), PYTHONHOME=None
    )
    assert "ng refs/heads/x pre-receive hook declined" in said


def test_raw_pushes_go_on_when_one_fails(own_node: Node) -> None:
    """A guard that was asked and said no is still proved: the next push is taken."""
    node = own_node
    assert not raw_push(*node.serve.git_address, f"/{WIDGETS}", [(ZERO, node.tip, "refs/heads/x")]).accepted
    assert raw_push(*node.serve.git_address, f"/{WIDGETS}", [(ZERO, node.tip, "refs/agents/s1")]).accepted
    assert remote_refs(node.url)["refs/agents/s1"] == node.tip
