"""`gitmirror_record`: whatever state an agent leaves its workspace in, the turn is kept."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import WIDGETS
from tests.support.generate import add_commit
from tests.support.gitutil import git, git_result, refs
from tests.workspace.conftest import CURL, SHELLS, Guest, Node

ME = ("-c", "user.name=me", "-c", "user.email=me@example.com")


@pytest.fixture
def guest(node: Node, tmp_path: Path) -> Guest:
    """A guest with a workspace in `ws`."""
    made = node.guest(tmp_path / "home", tools=CURL)
    made.hydrate(made.home / "ws").hydrated(via="snapshot")
    return made


def recorded_tree(node: Node, commit: str) -> list[str]:
    """Paths of a recorded commit, read from the mirror."""
    return git("ls-tree", "-r", "-z", "--name-only", commit, cwd=node.serve.mirror(WIDGETS)).split("\0")


def conflict(workspace: Path) -> None:
    """Two branches that do not merge, `other` and the one that is checked out."""
    (workspace / "README.md").write_text("ours\n")
    git("commit", "-qam", "ours", cwd=workspace)
    git("branch", "other", "HEAD~1", cwd=workspace)
    git("checkout", "-q", "other", cwd=workspace)
    (workspace / "README.md").write_text("theirs\n")
    git("commit", "-qam", "theirs", cwd=workspace)
    git("checkout", "-q", "main", cwd=workspace)


def test_everything_but_ignored_files_is_recorded(node: Node, guest: Guest) -> None:
    """New, changed, deleted, renamed and executable files are there; ignored ones stay out."""
    workspace = guest.home / "ws"
    (workspace / ".gitignore").write_text("*.log\n")
    (workspace / "build.log").write_text("noise\n")
    (workspace / "-new file\n.txt").write_text("odd\n")
    (workspace / "README.md").rename(workspace / "READ.md")
    (workspace / "run.sh").chmod(0o644)
    turn = guest.record("all", workspace / "src").recorded("all")
    paths = recorded_tree(node, turn)
    assert {".gitignore", "-new file\n.txt", "READ.md"} <= set(paths)
    assert not {"README.md", "build.log"} & set(paths)
    assert git("ls-tree", turn, "run.sh", cwd=node.serve.mirror(WIDGETS)).startswith("100644")
    assert git("log", "-1", "--format=%s|%an <%ae>|%cn <%ce>", cwd=workspace) == "|".join(
        ["Turn of all", "agent <agent@gitmirror.invalid>", "agent <agent@gitmirror.invalid>"]
    )
    assert guest.git("status", "--porcelain", cwd=workspace) == ""


@pytest.mark.parametrize("shell", SHELLS)
def test_nothing_new_is_nothing(node: Node, tmp_path: Path, shell: str) -> None:
    """An untouched workspace, a recorded one, and a repository without a commit: `recorded nothing`, code 0."""
    made = node.guest(tmp_path / "home", shell=shell)
    workspace = made.home / "ws"
    made.hydrate(workspace).hydrated(via="snapshot")
    session = f"nothing-{shell}"
    assert made.record(session, workspace) == made.record(session, workspace)
    assert made.record(session, workspace).out == "recorded nothing\n"
    assert f"refs/agents/{session}" not in refs(node.serve.mirror(WIDGETS))
    (workspace / "new.txt").write_text("x")
    made.record(session, workspace).recorded(session)
    assert made.record(session, workspace).out == "recorded nothing\n"
    empty = made.home / "empty"
    git("init", "--quiet", str(empty))
    git("config", "gitmirror.repository", WIDGETS, cwd=empty)
    assert made.record(session, empty).out == "recorded nothing\n"
    (empty / "first.txt").write_text("x")
    made.record(f"{session}-root", empty).recorded(f"{session}-root")


def test_what_the_agent_committed_itself_is_recorded(node: Node, guest: Guest) -> None:
    """Commits on a branch of its own or on no branch, with nothing left to commit, and going back to the start too."""
    workspace = guest.home / "ws"
    guest.git("checkout", "--quiet", "--detach", cwd=workspace)
    guest.git(*ME, "commit", "--quiet", "--allow-empty", "-m", "mine", cwd=workspace)
    head = guest.git("rev-parse", "HEAD", cwd=workspace)
    assert guest.record("own", workspace).recorded("own") == head
    assert guest.record("own2", workspace).recorded("own2") == head
    guest.git("reset", "--quiet", "--hard", "HEAD~1", cwd=workspace)
    back = guest.git("rev-parse", "HEAD", cwd=workspace)
    assert guest.record("own2", workspace).recorded("own2") == back
    assert refs(node.serve.mirror(WIDGETS))["refs/agents/own2"] == back


@pytest.mark.parametrize("state", ["merge", "rebase", "cherry-pick", "revert", "resolved"])
def test_whatever_was_under_way_is_recorded_as_it_stands(node: Node, guest: Guest, state: str) -> None:
    """In the middle of a merge, rebase, cherry-pick or revert, conflict markers and all."""
    workspace = guest.home / "ws"
    conflict(workspace)
    command = {
        "merge": ("merge", "other"),
        "resolved": ("merge", "-s", "ours", "--no-commit", "other"),
        "rebase": ("rebase", "other"),
        "cherry-pick": ("cherry-pick", "other"),
        "revert": ("revert", "HEAD~1"),
    }[state]
    if state == "revert":
        (workspace / "README.md").write_text("and more\n")
        git("commit", "-qam", "more", cwd=workspace)
    code, _, _ = git_result(*command, cwd=workspace)
    assert (code == 0) == (state == "resolved")
    turn = guest.record(f"in-{state}", workspace).recorded(f"in-{state}")
    text = git("show", f"{turn}:README.md", cwd=node.serve.mirror(WIDGETS))
    assert ("<<<<<<<" in text) == (state != "resolved")
    parents = git("rev-list", "--parents", "-1", turn, cwd=node.serve.mirror(WIDGETS)).split()
    assert len(parents) == (3 if state in ("merge", "resolved") else 2)


def test_locks_of_a_killed_agent_are_no_hindrance(node: Node, guest: Guest) -> None:
    """Its turn is over, whatever it was doing."""
    workspace = guest.home / "ws"
    (workspace / "new.txt").write_text("x")
    for lock in ("index.lock", "HEAD.lock", "config.lock", "refs/heads/main.lock"):
        (workspace / ".git" / lock).parent.mkdir(parents=True, exist_ok=True)
        (workspace / ".git" / lock).write_text("")
    guest.record("locked", workspace).recorded("locked")


def test_a_repository_inside_the_workspace_does_not_stop_it(node: Node, guest: Guest) -> None:
    """A nested repository is recorded as a link to its commit, or left out if it has none; code 3 and stderr say so."""
    workspace = guest.home / "ws"
    for name in ("with", "without"):
        git("init", "--quiet", str(workspace / name))
        (workspace / name / "inner.txt").write_text("inner\n")
    git("add", "-A", cwd=workspace / "with")
    git("commit", "-qm", "inner", cwd=workspace / "with")
    (workspace / "new.txt").write_text("x")
    done = guest.record("nested", workspace)
    turn = done.recorded("nested", code=3)
    paths = recorded_tree(node, turn)
    assert "new.txt" in paths and "with" in paths and "without" not in paths
    assert "could not be added" in done.err and "with is a git repository of its own" in done.err
    again = guest.record("nested", workspace)
    assert (again.code, again.out) == (3, "recorded nothing\n")


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/usr/bin/setpriv").exists(), reason="root can read everything")
def test_files_that_cannot_be_read_do_not_stop_it(node: Node, guest: Guest) -> None:
    """The others are recorded, and stderr says so."""
    workspace = guest.home / "ws"
    (workspace / "secret.txt").write_text("x")
    (workspace / "secret.txt").chmod(0)
    (workspace / "new.txt").write_text("x")
    drop = "setpriv --bounding-set=-dac_override,-dac_read_search --inh-caps=-all" if os.geteuid() == 0 else ""
    runner = Guest(guest.home, guest.kit, guest.shell, None, guest.env)
    done = runner.run(f"{drop} sh '{guest.kit}' record unreadable '{workspace}'")
    turn = done.recorded("unreadable", code=3)
    paths = recorded_tree(node, turn)
    assert "new.txt" in paths and "secret.txt" not in paths
    assert "could not be added" in done.err


def test_the_guest_keeps_its_own_identity(node: Node, guest: Guest) -> None:
    """From its config or its environment; what is missing of it is filled up."""
    workspace = guest.home / "ws"
    git("config", "user.email", "me@example.com", cwd=workspace)
    (workspace / "one.txt").write_text("x")
    guest.record("identity", workspace).recorded("identity")
    assert git("log", "-1", "--format=%an <%ae>", cwd=workspace) == "agent <me@example.com>"
    (workspace / "two.txt").write_text("x")
    guest.with_(GIT_AUTHOR_NAME="Ada", GIT_COMMITTER_EMAIL="c@example.com").record("identity", workspace)
    assert git("log", "-1", "--format=%an <%ae> %cn <%ce>", cwd=workspace) == (
        "Ada <me@example.com> agent <c@example.com>"
    )


def test_a_second_turn_from_a_fresh_workspace_is_forced(node: Node, tmp_path: Path) -> None:
    """It is no fast-forward of the first; the mirror keeps both."""
    turns = []
    for number in range(2):
        guest = node.guest(tmp_path / f"home{number}")
        guest.hydrate(guest.home / "ws").hydrated(via="snapshot")
        (guest.home / "ws" / f"{number}.txt").write_text("x")
        turns.append(guest.record("forced", guest.home / "ws").recorded("forced"))
    mirror = node.serve.mirror(WIDGETS)
    assert refs(mirror)["refs/agents/forced"] == turns[1]
    assert set(turns) <= set(refs(mirror).values())


@pytest.mark.parametrize("session", ["", ".x", "-x", "a..b", "x.lock", "x.", "a/b", "a b", "x" * 129, "é"])
def test_a_session_name_that_no_push_could_have_is_refused_at_once(guest: Guest, session: str) -> None:
    """Code 2, before anything is committed."""
    workspace = guest.home / "ws"
    (workspace / "new.txt").write_text("x")
    done = guest.record(session, workspace)
    assert (done.code, done.out) == (2, "")
    assert git("status", "--porcelain", cwd=workspace) == "?? new.txt"


def test_a_place_without_a_repository_is_said(guest: Guest) -> None:
    """Code 1 and a reason, for no directory, no repository, and a repository of nowhere."""
    (guest.home / "plain").mkdir()
    git("init", "--quiet", str(guest.home / "nowhere"))
    for name, why in (
        ("missing", "no directory"),
        ("plain", "not a git work"),
        ("nowhere", "names no repository"),
    ):
        done = guest.record("x", guest.home / name)
        assert (done.code, done.out) == (1, "") and why in done.err


def test_a_clone_by_hand_is_recorded_by_its_origin(node: Node, guest: Guest) -> None:
    """A workspace that the kit did not make names its repository by `origin`."""
    workspace = guest.home / "clone"
    git("clone", "--quiet", "--depth=1", f"{node.serve.git_url}/{WIDGETS}.git/", str(workspace))
    (workspace / "new.txt").write_text("x")
    guest.record("by-hand", workspace).recorded("by-hand")


def test_a_directory_may_have_a_newline_in_its_name(node: Node, tmp_path: Path) -> None:
    """Hydrated, recorded and gone on with."""
    guest = node.guest(tmp_path / "home")
    for name in ("two\nlines", "at the end\n"):
        workspace = guest.home / name
        guest.hydrate(workspace).hydrated(via="snapshot")
        (workspace / "new.txt").write_text(name)
        turn = guest.record("newline", workspace / "src").recorded("newline")
        assert git("rev-parse", "HEAD", cwd=workspace) == turn


@pytest.mark.slow
def test_a_push_that_fails_leaves_the_commit_and_can_be_done_again(own_node: Node, tmp_path: Path) -> None:
    """The mirror is gone: tries, then code 1 with the reason; when it is back, the same turn goes through."""
    guest = own_node.guest(tmp_path / "home")
    workspace = guest.home / "ws"
    guest.hydrate(workspace).hydrated(via="snapshot")
    (workspace / "new.txt").write_text("x")
    own_node.serve.keep_ports()
    own_node.serve.terminate()
    done = guest.with_(GITMIRROR_DEADLINE=3).record("again", workspace)
    assert (done.code, done.out) == (1, "") and "onnect" in done.err
    head = git("rev-parse", "HEAD", cwd=workspace)
    assert head in done.err and git("log", "-1", "--format=%s", cwd=workspace) == "Turn of again"
    own_node.serve.start()
    assert guest.record("again", workspace).recorded("again") == head


def test_a_refusal_is_told_at_once(own_node: Node, tmp_path: Path) -> None:
    """What the mirror refuses is not tried again; its reason is on stderr."""
    guest = own_node.guest(tmp_path / "home")
    workspace = guest.home / "ws"
    guest.hydrate(workspace).hydrated(via="snapshot")
    (workspace / "new.txt").write_text("x")
    # A ref that is in the way of this one.
    git("update-ref", "refs/agents/taken/x", own_node.tip, cwd=own_node.serve.mirror(WIDGETS))
    done = guest.record("taken", workspace)
    assert done.code == 1 and "remote rejected" in done.err
    assert [row["ref"] for row in own_node.serve.cli_json("audit")] == ["refs/agents/taken"]


@pytest.mark.slow
def test_a_mirror_that_lacks_the_base_is_waited_for(make_node: Callable[..., Node], tmp_path: Path) -> None:
    """A workspace of the upstream, newer than the mirror: the push makes it look, and then goes through."""
    node = make_node()
    guest = node.guest(tmp_path / "home")
    base = add_commit(node.upstream.path(WIDGETS), "main", {"newer.txt": "x\n"})
    workspace = guest.home / "ws"
    away = guest.with_(GITMIRROR_HTTP="", GITMIRROR_GIT="")
    assert away.hydrate(workspace).hydrated(via="upstream") == base
    (workspace / "new.txt").write_text("x")
    turn = guest.record("ahead", workspace).recorded("ahead")
    assert git("rev-parse", f"{turn}~1", cwd=node.serve.mirror(WIDGETS)) == base
