"""Root, a member of the service's group and a stranger on one node: what each may do, and whose the files are."""

from __future__ import annotations

import grp
import json
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.forked import Ids
from tests.support.gitutil import commit_files, git
from tests.support.privileges import other_users_python, run_as
from tests.support.serve import Serve, write_config

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as other users"), pytest.mark.slow]

SERVICE, MEMBER, STRANGER = 61000, 61001, 61002
REPO = "acme/homelab"


@dataclass(frozen=True)
class Installed:
    """A node like one that `install` made: the state directory is the service's, and its group may enter."""

    serve: Serve
    runtime: Path
    tip: str

    def run(
        self, *words: str, cwd: Path, user: int = 0, groups: Sequence[int] = ()
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command as a user."""
        serve = self.serve
        words = ("--state", str(serve.state), "--config", str(serve.config), *words)
        return run_as((user, user, groups), serve.command, words, env=serve.env, cwd=cwd)

    def member(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Runs a command as a member of the service's group."""
        return self.run(*words, cwd=Path("/"), user=MEMBER, groups=[SERVICE])


@pytest.fixture(scope="module")
def node() -> Iterator[Installed]:
    """With one repository, and a session in it, and no `serve` once it is stopped."""
    python, path = other_users_python(SERVICE)
    place = Path(tempfile.mkdtemp(prefix="gitmirror-test-"))
    place.chmod(0o755)
    state, runtime = place / "state", place / "run"
    for directory in (state, runtime):
        directory.mkdir()
        os.chown(directory, SERVICE, SERVICE)
        directory.chmod(0o750)
    upstream = place / "homelab.git"
    git("init", "--quiet", "--bare", "--initial-branch=main", str(upstream))
    git("clone", "--quiet", str(upstream), str(place / "work"))
    commit_files(place / "work", {"a.txt": "1\n"}, "One")
    git("push", "--quiet", "origin", "HEAD:main", cwd=place / "work")
    env = {"PYTHONPATH": path, "RUNTIME_DIRECTORY": str(runtime)}
    try:
        with Serve(state, python=python, env=env) as serve:
            repos = [{"url": f"file://{upstream}", "name": REPO}]
            write_config(serve.config, repos, refresh={"allow_local": True}, workspace={"enabled": False})
            serve.start()
            serve.wait_for_repo(REPO)
            tip = commit_files(place / "work", {"a.txt": "2\n"}, "Two")
            git("push", "--quiet", f"{serve.git_url}/{REPO}", "HEAD:refs/agents/s1", cwd=place / "work")
            yield Installed(serve, runtime, tip)
    finally:
        shutil.rmtree(place, ignore_errors=True)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A directory that only root may enter."""
    place = tmp_path / "own"
    place.mkdir(mode=0o700)
    return place


def owners(directory: Path) -> set[int]:
    """Whose everything in a directory is."""
    return {path.lstat().st_uid for path in directory.rglob("*")}


def test_what_root_writes_elsewhere_is_roots(node: Installed, own: Path) -> None:
    """In a place where the service may write nothing. What cannot be written is said, and leaves nothing."""
    assert node.run("session", "checkout", REPO, "s1", "replay", cwd=own).returncode == 0
    assert (own / "replay" / "a.txt").read_text() == "2\n"
    assert git("rev-parse", "HEAD", cwd=own / "replay") == node.tip
    assert git("status", "--porcelain", cwd=own / "replay") == ""
    assert node.run("session", "bundle", REPO, "s1", "-o", "s1.bundle", cwd=own).returncode == 0
    git("bundle", "verify", "--quiet", str(own / "s1.bundle"), cwd=own / "replay")
    with (own / "s1.diff").open("wb") as file:
        done = subprocess.run(
            [*node.serve.command, "--state", str(node.serve.state), "session", "diff", REPO, "s1"],
            cwd=own, env=node.serve.env, stdout=file, check=False, timeout=60,
        )  # fmt: skip
    assert done.returncode == 0 and "+2" in (own / "s1.diff").read_text()
    before = sorted(own.iterdir())
    again = node.run("session", "checkout", REPO, "s1", "replay", cwd=own)
    assert (again.returncode, "is not empty" in again.stderr) == (2, True)
    again = node.run("session", "bundle", REPO, "s1", "-o", "s1.bundle", cwd=own)
    assert (again.returncode, "already exists" in again.stderr) == (2, True)
    # Its owner could have a hook run as root.
    others = own / "others"
    others.mkdir()
    os.chown(others, SERVICE, -1)
    taken = node.run("session", "checkout", REPO, "s1", "others", cwd=own)
    assert (taken.returncode, "another user's" in taken.stderr, list(others.iterdir())) == (2, True, [])
    others.rmdir()
    away = node.run("session", "checkout", REPO, "s1", "/proc/replay", cwd=own)
    assert away.returncode == 1 and "/proc/replay cannot be written" in away.stderr and "Traceback" not in away.stderr
    assert sorted(own.iterdir()) == before and owners(own) == {0}
    assert owners(node.serve.state) == {SERVICE}


def test_a_bundle_that_cannot_be_made_leaves_no_file(node: Installed, own: Path) -> None:
    """It is removed again as whoever made it."""
    mirror = node.serve.mirror(REPO)
    objects = mirror / "objects"
    objects.rename(mirror / "aside")
    objects.mkdir()
    try:
        done = node.run("session", "bundle", REPO, "s1", "-o", "s1.bundle", cwd=own)
        assert done.returncode != 0 and "Traceback" not in done.stderr
        done = node.run("session", "checkout", REPO, "s1", "replay", cwd=own)
        assert done.returncode != 0 and "Traceback" not in done.stderr
    finally:
        objects.rmdir()
        (mirror / "aside").rename(objects)
    assert list(own.iterdir()) == []


def test_root_verifies_backups_that_it_alone_may_read(node: Installed, own: Path) -> None:
    """And writes nothing into the state directory as root, where the service places links."""
    made = node.runtime.parent / "backups"
    made.mkdir()
    os.chown(made, SERVICE, SERVICE)
    assert node.run("backup", str(made), cwd=Path("/")).returncode == 0
    shutil.move(made, own / "backups")
    done = node.run("backup", "verify", str(own / "backups"), cwd=Path("/"))
    assert done.returncode == 0, done.stderr
    assert (node.serve.state / "backup-proof.json").stat().st_uid == SERVICE
    assert owners(node.serve.state) == {SERVICE}


CHANGES = (
    ["session", "keep", REPO, "s1"],
    ["token", "issue", "--repo", REPO],
    ["token", "revoke", "1"],
    ["api-token", "issue", "--scope", "read"],
    ["api-token", "revoke", "1"],
    ["guest", "add", "vm-1", "--address", "10.0.0.5"],
    ["guest", "remove", "vm-1"],
    ["disable", REPO],
    ["enable", REPO],
)
READS = (["status"], ["repos"], ["sessions"], ["session", "show", REPO, "s1"], ["audit"], ["storage"], ["guests"])


def test_a_member_changes_the_node_through_serve_and_reads_it_without(node: Installed) -> None:
    """Without `serve`, a change ends with code 4 and says why; with it, each is made. Nothing asks for a `chown`."""
    for words in CHANGES:
        done = node.member(*words)
        assert done.returncode == 0, (words, done.stderr)
    doctor = node.member("doctor", "--json")
    [state] = [check for check in json.loads(doctor.stdout) if check["name"] == "state directory"]
    assert state["ok"] and "chown" not in doctor.stdout
    typo = node.member("disable", "homelab")
    assert typo.returncode == 2 and f"did you mean {REPO}?" in typo.stderr

    node.serve.terminate()
    try:
        for words in CHANGES[:6]:
            done = node.member(*words)
            assert done.returncode == 4 and "this user may not write the database" in done.stderr, (words, done)
            assert "running serve" in done.stderr and "chown" not in done.stderr and "disk" not in done.stderr
        for words in READS:
            done = node.member(*words)
            assert done.returncode == (4 if words == ["status"] else 0), (words, done.stderr)
        assert owners(node.serve.state) == {SERVICE}
    finally:
        node.serve.start()


def test_root_revokes_a_token_beside_a_serve_that_does_not_answer(node: Installed) -> None:
    """It looks tokens up in the database at each request."""
    issued = json.loads(node.member("api-token", "issue", "--scope", "read", "--json").stdout)
    control = node.runtime / "control.sock"
    control.rename(node.runtime / "aside")
    try:
        done = node.run("api-token", "revoke", str(issued["id"]), cwd=Path("/"))
        assert done.returncode == 0, done.stderr
        assert node.member("api-token", "revoke", str(issued["id"])).returncode == 4
    finally:
        (node.runtime / "aside").rename(control)


def test_a_stranger_is_told_how_to_get_in(node: Installed) -> None:
    """Nothing says that `serve` does not run: such a user cannot know."""
    for words in (["status"], ["refresh"], ["session", "drop", REPO, "s1", "--yes"]):
        done = node.run(*words, cwd=Path("/"), user=STRANGER)
        assert done.returncode == 1 and "may not enter the state directory" in done.stderr
        assert "not running" not in done.stderr and "sudo" in done.stderr and "Traceback" not in done.stderr


def test_the_group_to_join_is_named(node: Installed) -> None:
    """With the very command; nobody is told to join the group of root."""
    user = pwd.getpwnam("nobody")
    place = node.runtime.parent / "closed"
    place.mkdir(mode=0o750)
    words = ["--state", str(place), "repos"]
    for group, advice in ((grp.getgrnam("daemon").gr_gid, "`sudo usermod -aG daemon nobody`"), (0, "run the command")):
        os.chown(place, 0, group)
        ids: Ids = (user.pw_uid, user.pw_gid, [])
        done = run_as(ids, node.serve.command, words, env=node.serve.env, cwd=Path("/"))
        assert done.returncode == 1 and advice in done.stderr
        assert ("usermod" in done.stderr) == bool(group)
