"""A workspace of another user: git refuses to work in it, and the kit says what to do."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import WIDGETS
from tests.support.gitutil import git, run_process
from tests.workspace.conftest import CURL, SHELLS, Guest, Node, quote

SOMEBODY = 65534
"""The user id of `nobody`."""


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that every user can reach."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root can be several users, with setpriv")
    made = Path(tempfile.mkdtemp(prefix="gitmirror-owner-"))
    made.chmod(0o755)
    try:
        yield made
    finally:
        shutil.rmtree(made)


def give(place: Path, user: int) -> None:
    """Make `user` the owner of everything in `place`."""
    assert run_process(["chown", "-R", f"{user}:{user}", str(place)]).returncode == 0


def as_user(guest: Guest, user: int, home: Path) -> Guest:
    """The same kit as another user, with a HOME of its own."""
    home.mkdir()
    give(home, user)
    words = f"setpriv --reuid={user} --regid={user} --clear-groups {shutil.which(guest.shell)}"
    return Guest(home, guest.kit, words, None, guest.env)


@pytest.mark.parametrize(("shell", "user"), [*[(shell, 0) for shell in SHELLS], ("dash", SOMEBODY)])
def test_what_to_do_is_said(node: Node, public: Path, shell: str, user: int) -> None:
    """Root in a workspace of another, and the other way round; what is said helps root, and its owner can go on."""
    guest = node.guest(public / "home", tools=CURL, shell=shell)
    workspace = guest.home / "ws"
    guest.hydrate(workspace).hydrated(via="snapshot")
    owner = SOMEBODY if user == 0 else 0
    give(workspace, owner)
    caller = guest if user == 0 else as_user(guest, user, public / "other")
    (workspace / "new.txt").write_text("new\n")
    for command in (f"gitmirror_record owner-{shell} {quote(str(workspace))}", "gitmirror_backfill"):
        done = caller.run(command, cwd=workspace)
        assert (done.code, done.out) == (1, "")
        [first, advice] = done.err.splitlines()
        assert first.startswith(f"gitmirror: {workspace} belongs to another user")
        assert advice == f"gitmirror: git config --global --add safe.directory '{workspace}'"
    assert not (workspace / ".git" / "index.lock").exists()
    caller.run(advice.removeprefix("gitmirror: "))
    done = caller.record(f"owner-{shell}-{user}", workspace)
    if user == 0:
        turn = done.recorded(f"owner-{shell}-{user}")
        assert git("show", f"{turn}:new.txt", cwd=node.serve.mirror(WIDGETS)) == "new"
    else:
        assert (done.code, done.out) == (1, "")
        assert "cannot be written by this user" in done.err and "the user who owns the workspace" in done.err


def test_the_owner_records(node: Node, public: Path) -> None:
    """The user who hydrated it needs nothing."""
    guest = as_user(node.guest(public / "root"), SOMEBODY, public / "home")
    workspace = guest.home / "ws"
    guest.hydrate(workspace).hydrated(via="snapshot")
    (workspace / "new.txt").touch()
    give(workspace, SOMEBODY)
    guest.record("owner-own", workspace).recorded("owner-own")
