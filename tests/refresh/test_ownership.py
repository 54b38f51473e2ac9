"""Whose files they are: a command run as root on another user's state directory acts as that user."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import WIDGETS
from tests.support.gitutil import commit_files, git, remote_refs, wait_until
from tests.support.privileges import other_users_python, run_as
from tests.support.serve import Serve
from tests.support.upstream import HttpUpstream

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")


def run_by(user: pwd.struct_passwd, serve: Serve, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command on the state directory of `serve` as another user."""
    words = ["--state", str(serve.state), "--config", str(serve.config), *args]
    return run_as((user.pw_uid, user.pw_gid, []), serve.command, words, env={**serve.env, **env}, cwd=Path("/"))


@pytest.fixture(scope="module")
def owner() -> pwd.struct_passwd:
    """A user that is not root and that every machine has."""
    try:
        return pwd.getpwnam("nobody")
    except KeyError:
        pytest.skip("this machine has no user nobody")


@pytest.fixture
def serve(owner: pwd.struct_passwd) -> Iterator[Serve]:
    """A state directory of `owner`, in a place that all may enter, for commands that root runs."""
    python, path = other_users_python(owner.pw_uid)
    place = Path(tempfile.mkdtemp(prefix="gitmirror-test-"))
    try:
        place.chmod(0o755)
        state = place / "state"
        state.mkdir()
        os.chown(state, owner.pw_uid, owner.pw_gid)
        with Serve(state, python=python, env={"PYTHONPATH": path}, refresh={"interval": "1s"}) as serve:
            yield serve
    finally:
        shutil.rmtree(place, ignore_errors=True)


def owners(directory: Path) -> set[int]:
    """Return the user ids of everything in a directory and of itself."""
    found = {directory.lstat().st_uid}
    for parent, directories, files in os.walk(directory):
        for name in [*directories, *files]:
            # What a running child is noted in may go at any moment.
            with contextlib.suppress(FileNotFoundError):
                found.add(os.lstat(os.path.join(parent, name)).st_uid)
    return found


def ids_of(pid: int) -> tuple[set[str], set[str], set[str]]:
    """Return the user ids, group ids and supplementary groups of a process."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return set(lines["Uid"].split()), set(lines["Gid"].split()), set(lines["Groups"].split())


@pytest.mark.slow
def test_commands_of_root_leave_nothing_of_roots(
    serve: Serve, upstream: HttpUpstream, owner: pwd.struct_passwd
) -> None:
    """The database, the mirror and all else that an `add-repo` without serve makes belong to the owner."""
    serve.cli("repos")
    serve.cli("add-repo", upstream.url(WIDGETS))
    serve.cli("disable", WIDGETS)
    serve.cli("enable", WIDGETS)
    assert serve.mirror(WIDGETS).exists()
    assert owners(serve.state) == {owner.pw_uid}
    serve.cli("remove-repo", WIDGETS, "--purge", "--yes")
    assert owners(serve.state) == {owner.pw_uid}


@pytest.mark.slow
def test_serve_of_root_acts_as_the_owner(
    serve: Serve, upstream: HttpUpstream, owner: pwd.struct_passwd, tmp_path: Path
) -> None:
    """It gives up root for good, follows, serves and records; root's commands reach it."""
    serve.cli("add-repo", upstream.url(WIDGETS))
    serve.start()
    uids, gids, groups = ids_of(serve.pid)
    assert uids == {str(owner.pw_uid)} and gids == {str(owner.pw_gid)} and "0" not in groups
    guest = serve.clone(tmp_path / "guest", WIDGETS)
    recorded = commit_files(guest, {"work.txt": "1\n"}, "Work")
    git("push", "--quiet", "origin", "HEAD:refs/agents/s1", cwd=guest)
    assert remote_refs(f"{serve.git_url}/{WIDGETS}")["refs/agents/s1"] == recorded
    assert serve.cli_json("refresh", WIDGETS)[0]["error"] is None
    assert serve.cli_json("audit")[0]["outcome"] == "applied"
    upstream.on(WIDGETS).hang = True
    wait_until(lambda: len(serve.processes()) > 1, message="a child runs")
    # A child that has just been started may be gone again.
    for pid in serve.processes():
        if Path(f"/proc/{pid}/status").exists():
            assert ids_of(pid)[0] == {str(owner.pw_uid)}
    upstream.reset()
    assert owners(serve.state) == {owner.pw_uid}
    assert serve.terminate() == 0
    assert owners(serve.state) == {owner.pw_uid}


@pytest.mark.slow
def test_after_root_the_owner_can_go_on(serve: Serve, upstream: HttpUpstream, owner: pwd.struct_passwd) -> None:
    """What root's commands made, the service's own user can read and change."""
    serve.cli("add-repo", upstream.url(WIDGETS))
    done = run_by(owner, serve, "disable", WIDGETS)
    assert done.returncode == 0, done.stderr
    assert serve.cli_json("repos")[0]["enabled"] is False


@pytest.mark.slow
def test_somebody_else_is_told_whose_it_is(serve: Serve, owner: pwd.struct_passwd) -> None:
    """A third user whom the modes let read changes nothing. He gets an error in words, and no traceback."""
    serve.cli("add-repo", "https://127.0.0.1:1/a/b", "--no-wait")
    # The command that made it closed it.
    subprocess.run(["chmod", "-R", "o+rX", str(serve.state)], check=True)
    stranger = next(user for user in pwd.getpwall() if user.pw_uid not in (0, owner.pw_uid))
    assert run_by(stranger, serve, "repos").returncode == 0
    for command, code in ((["disable", "a/b"], 4), (["serve", *serve.options], 1)):
        done = run_by(stranger, serve, *command)
        assert done.returncode == code, done
        assert "Traceback" not in done.stderr and str(serve.state) in done.stderr and "user" in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        "status",
        *(pytest.param(each, marks=pytest.mark.slow) for each in ("repos", "sessions", "audit")),
        "add-repo https://127.0.0.1:1/a/b",
    ],
)
def test_a_user_who_may_not_enter_learns_what_to_do(serve: Serve, owner: pwd.struct_passwd, command: str) -> None:
    """A node's state directory is closed to other users: they get an error and a hint instead of a traceback."""
    serve.cli("repos")
    os.chown(serve.state, 0, 0)
    serve.state.chmod(0o750)
    done = run_by(owner, serve, *command.split(), PATH=os.defpath, HOME="/nonexistent")
    assert done.returncode == 1
    assert f"this user may not enter the state directory {serve.state}" in done.stderr
    assert "sudo" in done.stderr
    assert "Traceback" not in done.stderr


def test_doctor_tells_a_user_who_may_not_enter(serve: Serve, owner: pwd.struct_passwd) -> None:
    """The checks that need nothing of it are made all the same, and the others say nothing that is not so."""
    os.chown(serve.state, 0, 0)
    serve.state.chmod(0o750)
    done = run_by(owner, serve, "doctor", PATH=os.defpath, HOME="/nonexistent")
    assert done.returncode == 3
    assert f"{serve.state} cannot be used by this user" in done.stdout
    assert "run the command with sudo" in done.stdout
    assert "ok    git:" in done.stdout and "serve" not in done.stdout.partition("state directory")[0]
    assert "not running" not in done.stdout
    assert "Traceback" not in done.stderr
