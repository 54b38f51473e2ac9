"""A workspace of drives and a running `serve`: what is asked for, what has moved, sessions, and git on an overlay."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import WIDGETS
from tests.support.generate import add_commit
from tests.support.gitutil import fsck, git
from tests.workspace.conftest import BUSYBOX, CURL, NOTHING, Guest, Node
from tests.workspace.disk.drives_lab import Machine, make_drives, plant_data_header
from tests.workspace.disk.guest.conftest import UPSTREAM, MakeDrives
from tests.workspace.disk.guest.test_kit_disk import assert_whole

MOUNTING = ("mount", "umount", "dd", "cksum")
"""What the kit needs for drives."""


@pytest.fixture
def guest(machine: Machine, disk_node: Node, made: MakeDrives, tmp_path: Path) -> Guest:
    """A guest of the shared node with two drives."""
    return machine.guest(disk_node.guest(tmp_path / "home"), GITMIRROR_DRIVES=machine.drives(made("erofs")))


def shallow(machine: Machine, workspace: Path) -> bool:
    """Whether the workspace has only a part of its history."""
    return machine.run("git", "rev-parse", "--is-shallow-repository", cwd=workspace) == "true"


@pytest.mark.parametrize(("history", "tools"), [("full", CURL), ("tip", NOTHING)], ids=["full-http", "tip-git"])
@pytest.mark.slow
def test_it_takes_branches_tags_commits_and_sessions(
    machine: Machine, disk_node: Node, made: MakeDrives, tmp_path: Path, tools: tuple[str, ...], history: str
) -> None:
    """What is on the drives comes from there, the rest from the mirror; a whole history stays whole."""
    bare = disk_node.upstream.path(WIDGETS)
    old = git("rev-parse", "main~3", cwd=bare)
    maker = machine.guest(disk_node.guest(tmp_path / "maker"), GITMIRROR_DRIVES=machine.drives(made("erofs", history)))
    session = f"kinds-{history}-{len(tools)}"
    maker.hydrate("made").hydrated(via="disk")
    (machine.path(maker.home) / "made" / "session.txt").write_text("made\n")
    recorded = maker.record(session, maker.home / "made").recorded(session)
    guest = machine.guest(
        disk_node.guest(tmp_path / "home", tools=(*tools, *MOUNTING)),
        GITMIRROR_DRIVES=machine.drives(made("erofs", history)),
    )
    wanted = {
        "main": ("main", disk_node.tip),
        disk_node.tip: ("main", disk_node.tip),
        "develop": ("develop", git("rev-parse", "develop", cwd=bare)),
        "feature/search": ("feature/search", git("rev-parse", "feature/search", cwd=bare)),
        "v0.0": ("", git("rev-parse", "v0.0^{commit}", cwd=bare)),
        "v0.1": ("", git("rev-parse", "v0.1^{commit}", cwd=bare)),
        old: ("", old),
        f"session:{session}": ("main", recorded),
    }
    for number, (want, (branch, commit)) in enumerate(wanted.items()):
        workspace = guest.home / str(number)
        assert guest.hydrate(workspace, want).hydrated(via="disk") == commit, want
        assert machine.run("git", "branch", "--show-current", cwd=workspace) == branch
        assert shallow(machine, workspace) == (history == "tip"), want
        if branch:
            assert machine.run("git", "config", "remote.origin.fetch", cwd=workspace) == (
                f"+refs/heads/{branch}:refs/remotes/origin/{branch}"
            )
        assert machine.run("git", "config", "remote.origin.url", cwd=workspace) == UPSTREAM
        assert machine.run("git", "config", "gitmirror.base", cwd=workspace) == commit
        assert (workspace in [Path(mount) for mount in machine.mounts()]) and len(machine.mounts()) == number + 2
        machine.run("git", "fsck", cwd=workspace)
        assert machine.run("git", "status", "--porcelain", cwd=workspace) == ""


@pytest.mark.slow
def test_without_the_mirror_it_is_what_the_drives_have(machine: Machine, disk_node: Node, guest: Guest) -> None:
    """The branch, its old commits and its tags; anything else is refused, with nothing left."""
    guest = guest.with_(
        GITMIRROR_HTTP="http://127.0.0.1:9", GITMIRROR_GIT="git://127.0.0.1:9", GITMIRROR_UPSTREAM="file:///missing"
    )
    bare = disk_node.upstream.path(WIDGETS)
    old, tag = (git("rev-parse", name, cwd=bare) for name in ("main~2", "v0.1^{commit}"))
    for number, (want, commit) in enumerate({"": disk_node.tip, "main": disk_node.tip, old: old, "v0.1": tag}.items()):
        workspace = guest.home / str(number)
        assert guest.hydrate(workspace, want).hydrated(via="disk") == commit
        assert machine.run("git", "status", "--porcelain", cwd=workspace) == ""
        machine.run("umount", str(workspace))
    for want in ("develop", "missing", "1" * 40, "session:none"):
        assert guest.hydrate("none", want).code == 1
        assert machine.mounts() == [] and not (guest.home / "none").exists()


@pytest.mark.slow
def test_a_tip_that_cannot_be_fetched_is_not_waited_for(machine: Machine, moving: Node, tmp_path: Path) -> None:
    """If the mirror tells the tip but does not hand it out, the workspace is what the drives have."""
    bare = moving.upstream.path(WIDGETS)
    drives = make_drives(bare, tmp_path / "made", repository=WIDGETS, url=moving.upstream.url(WIDGETS))
    old = moving.tip
    new = add_commit(bare, "main", {"README.md": "new\n"})
    moving.refresh()
    guest = machine.guest(moving.guest(tmp_path / "home"), GITMIRROR_DRIVES=machine.drives(drives))
    # git cannot use the port for HTTP, which answers all the same.
    guest.env |= {"GITMIRROR_GIT": "git://127.0.0.1:9", "GIT_ALLOW_PROTOCOL": "git"}
    done = guest.hydrate("ws")
    assert done.hydrated(via="disk") == old
    assert f"{new} cannot be fetched from the mirror: the workspace is at {old}" in done.err
    assert_whole(machine, guest.home / "ws", old)


@pytest.fixture
def moving(make_node: Callable[..., Node]) -> Node:
    """A node of this test alone, whose upstream moves."""
    node = make_node()
    plant_data_header(node.upstream.path(WIDGETS))
    node.refresh()
    return node


@pytest.mark.parametrize("history", ["full", "tip"])
@pytest.mark.slow
def test_drives_behind_their_branch_are_brought_forward(
    machine: Machine, moving: Node, tmp_path: Path, history: str
) -> None:
    """The workspace is at the mirror's tip, with every tool that a guest may have, and its tags."""
    bare = moving.upstream.path(WIDGETS)
    drives = make_drives(bare, tmp_path / "made", repository=WIDGETS, url=moving.upstream.url(WIDGETS), history=history)
    old = moving.tip
    named = machine.drives(drives)
    new = add_commit(bare, "main", {"README.md": "new\n", "run.sh": None, "a/new.txt": "new\n"})
    git("tag", "later", new, cwd=bare)
    moving.refresh()
    for name, tools in {"curl": CURL, "busybox": BUSYBOX, "git": NOTHING}.items():
        guest = machine.guest(moving.guest(tmp_path / name, tools=(*tools, *MOUNTING)), GITMIRROR_DRIVES=named)
        assert guest.hydrate("ws").hydrated(via="disk") == new
        workspace = guest.home / "ws"
        assert_whole(machine, workspace, new, history=history)
        assert (machine.path(workspace) / "README.md").read_text() == "new\n"
        assert machine.run("git", "rev-parse", "refs/remotes/origin/main", cwd=workspace) == new
        tags = machine.run("git", "tag", cwd=workspace).split()
        assert ("later" in tags) == (history == "full")
        assert guest.record("forward", workspace).last == "recorded nothing"
        machine.run("umount", str(workspace))
        # Its own commit is there for the asking, and whoever asks for freshness and cannot have it goes upstream.
        assert guest.hydrate("old", old).hydrated(via="disk") == old
        machine.run("umount", str(guest.home / "old"))
    lagging = guest.with_(GITMIRROR_MAX_LAG="0").hydrate("late")
    assert lagging.hydrated(via="upstream") == new
    assert machine.mounts() == []


@pytest.mark.slow
def test_a_turn_is_recorded_and_gone_on_with(machine: Machine, disk_node: Node, guest: Guest, tmp_path: Path) -> None:
    """Two guests, both of drives: the second goes on with the session of the first; the redirect works in both."""
    guest.run("gitmirror_redirect")
    guest.hydrate("ws").hydrated(via="disk")
    workspace = machine.path(guest.home / "ws")
    readme = workspace / "README.md"
    readme.write_text(readme.read_text() + "more\n")
    readme.chmod(0o755)
    (workspace / "new").mkdir()
    (workspace / "new" / "file.txt").write_text("new\n")
    commit = guest.record("turns", guest.home / "ws").recorded("turns")
    second = machine.guest(disk_node.guest(tmp_path / "second"), GITMIRROR_DRIVES=guest.env["GITMIRROR_DRIVES"])
    assert second.hydrate("ws", "session:turns").hydrated(via="disk") == commit
    assert (machine.path(second.home) / "ws" / "new" / "file.txt").read_text() == "new\n"
    assert not shallow(machine, second.home / "ws")
    (machine.path(second.home) / "ws" / "second.txt").write_text("second\n")
    last = second.record("turns", second.home / "ws").recorded("turns")
    assert machine.run("git", "rev-parse", "HEAD~1", cwd=second.home / "ws") == commit
    on_the_mirror = git("ls-remote", f"{disk_node.serve.http_url}/{WIDGETS}", "refs/agents/turns", cwd=tmp_path)
    assert on_the_mirror.startswith(last)
    # The redirect sends the upstream's URL to the mirror.
    url = disk_node.upstream.url(WIDGETS)
    env = guest.environment()
    assert machine.run("git", "ls-remote", url, "refs/agents/turns", cwd=guest.home, env=env).startswith(last)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["erofs", "ext4"])
def test_git_works_through_the_overlay(
    machine: Machine, disk_node: Node, made: MakeDrives, tmp_path: Path, form: str
) -> None:
    """Commits, stash, rebase, old commits, moved directories, worktrees, gc: as in any clone, and fsck passes."""
    guest = machine.guest(disk_node.guest(tmp_path / "home"), GITMIRROR_DRIVES=machine.drives(made(form)))
    guest.hydrate("ws").hydrated(via="disk")
    top = guest.home / "ws"
    seen = machine.path(top)
    env = guest.environment() | {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b.c", "GIT_COMMITTER_NAME": "a",
                                 "GIT_COMMITTER_EMAIL": "a@b.c"}  # fmt: skip

    def run(*words: str) -> str:
        return machine.run("git", *words, cwd=top, env=env)

    # Of the same size, in the second of the mount.
    readme = seen / "README.md"
    data = readme.read_bytes()
    readme.write_bytes(data[:-2] + b"~\n")
    assert run("status", "--porcelain") == " M README.md" or run("status", "--porcelain") == "M README.md"
    run("stash")
    assert run("status", "--porcelain") == ""
    run("stash", "pop")
    run("commit", "--quiet", "-am", "one")
    run("checkout", "--quiet", "--detach", "HEAD~3")
    assert run("status", "--porcelain") == ""
    run("checkout", "--quiet", "-b", "side")
    (seen / "side.txt").write_text("side\n")
    run("add", "-A")
    run("commit", "--quiet", "-m", "side")
    run("rebase", "--quiet", "main")
    directory = next(path.name for path in sorted(seen.iterdir()) if path.is_dir() and path.name != ".git")
    run("mv", directory, "moved")
    run("commit", "--quiet", "-m", "moved")
    assert run("log", "--oneline", "--follow", "--", next(iter(run("ls-files", "moved").splitlines()))).count("\n") >= 1
    run("rm", "-rq", "moved")
    run("reset", "--quiet", "--hard")
    run("worktree", "add", "--quiet", str(guest.home / "tree"), "main")
    assert machine.run("git", "status", "--porcelain", cwd=guest.home / "tree") == ""
    run("worktree", "remove", str(guest.home / "tree"))
    run("gc", "--quiet", "--prune=now")
    run("fsck", "--strict")
    run("clean", "-ffdxq")
    assert run("status", "--porcelain") == ""
    run("clone", "--quiet", str(top), str(guest.home / "clone"))
    fsck(guest.home / "clone")
    assert guest.record(f"life-{form}", top).recorded(f"life-{form}") == run("rev-parse", "HEAD")
