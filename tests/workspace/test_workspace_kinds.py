"""What every workspace has, whichever way it came: modes by the caller's umask, its config, its hooks."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from tests.conftest import WIDGETS
from tests.support.gitutil import fsck, git
from tests.workspace.conftest import BUSYBOX, CURL, GNU_WGET, NOTHING, Guest, Node, quote

KINDS = {
    "curl": (CURL, "dash"),
    "wget": (GNU_WGET, "bash"),
    "busybox": (BUSYBOX, "busybox"),
    "git": (NOTHING, "bash"),
    "upstream": (("printf",), "mksh"),
}


QUICK = {("curl", 0o002), ("busybox", 0o027), ("git", 0o002)}
"""The kinds and umasks that the quick suite tries."""


def make(node: Node, tmp_path: Path, kind: str, *before: str, extra: tuple[str, ...] = ()) -> Guest:
    """A guest with a workspace of this kind in `ws`; `before` are commands ahead of the hydration."""
    tools, shell = KINDS[kind]
    env = {"GITMIRROR_GIT": "", "GITMIRROR_HTTP": ""} if kind == "upstream" else {}
    guest = node.guest(tmp_path / "home", tools=(*tools, *extra), shell=shell, **env)
    via = {"git": "mirror", "upstream": "upstream"}.get(kind, "snapshot")
    script = "; ".join([*before, f"gitmirror_hydrate {WIDGETS} {quote(str(guest.home / 'ws'))}"])
    guest.run(script).hydrated(via=via)
    return guest


def modes_of(top: Path) -> dict[str, int]:
    """The permissions of every file and directory of a workspace outside `.git`, and of `.git` itself."""
    paths = [path for path in (top, *top.rglob("*")) if not path.is_symlink()]
    return {
        str(path.relative_to(top)): stat.S_IMODE(path.stat().st_mode)
        for path in paths
        if ".git" not in path.relative_to(top).parts[:-1]
    }


@pytest.mark.parametrize(
    ("kind", "umask"),
    [
        pytest.param(kind, umask, marks=() if (kind, umask) in QUICK else pytest.mark.slow, id=f"{kind}-{umask:03o}")
        for kind in KINDS
        for umask in (0o077, 0o027, 0o002, 0o022, 0o000)
        # The others are told by these, and are tried with one kind.
        if kind == "curl" or umask in (0o027, 0o002)
    ],
)
def test_modes_are_those_of_a_clone(node: Node, tmp_path: Path, kind: str, umask: int) -> None:
    """Whatever the umask: also one that lets a group write, and for root, whose tar would take modes as they are."""
    guest = make(node, tmp_path, kind, f"umask {umask:03o}", extra=("chmod=busybox" if kind == "busybox" else "chmod",))
    workspace, clone = guest.home / "ws", guest.home / "clone"
    guest.run(f"umask {umask:03o}; git clone --quiet --template= --depth=1 {node.serve.git_url}/{WIDGETS} {clone}")
    assert modes_of(workspace) == modes_of(clone)
    for path in (workspace / ".git").rglob("*"):
        if path.suffix == ".promisor":
            # git gives these other modes.
            continue
        mode = stat.S_IMODE(path.stat().st_mode)
        is_object = path.relative_to(workspace / ".git").parts[0] == "objects"
        whole = 0o777 if path.is_dir() else 0o444 if is_object else 0o666
        assert mode == whole & ~umask, path
    assert git("status", "--porcelain", cwd=workspace) == ""
    assert git("config", "--default", "unset", "core.sharedRepository", cwd=workspace) == "unset"


def test_without_chmod_git_applies_such_a_umask(node: Node, tmp_path: Path) -> None:
    """Its tar could only take rights away."""
    guest = node.guest(tmp_path / "home", tools=CURL)
    done = guest.run(f"umask 002; gitmirror_hydrate {WIDGETS} ws")
    done.hydrated(via="mirror")
    assert "there is no chmod to apply the umask" in done.err
    assert (guest.home / "ws" / "README.md").stat().st_mode & 0o777 == 0o664


@pytest.mark.parametrize("kind", KINDS)
def test_no_maintenance_and_no_hooks(node: Node, tmp_path: Path, kind: str) -> None:
    """git repacks nothing in the middle of a turn, and a hook can be put where everybody puts it."""
    guest = make(node, tmp_path, kind)
    workspace = guest.home / "ws"
    assert list((workspace / ".git" / "hooks").iterdir()) == []
    assert git("config", "--get-all", "gc.auto", cwd=workspace) == "0"
    assert git("config", "--get-all", "maintenance.auto", cwd=workspace) == "false"
    # Set once only, so that an agent may set it otherwise.
    git("config", "gc.auto", "100", cwd=workspace)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param(kind, name, marks=() if (kind, name) == ("curl", "two\nlines\n") else pytest.mark.slow)
        for kind in KINDS
        for name in ("two\nlines\n", "\n")
    ],
)
def test_a_directory_with_a_newline(node: Node, tmp_path: Path, kind: str, name: str) -> None:
    """In all that the kit does, with a directory that exists or does not."""
    tools, shell = KINDS[kind]
    env = {"GITMIRROR_GIT": "", "GITMIRROR_HTTP": ""} if kind == "upstream" else {}
    guest = node.guest(tmp_path / "home", tools=tools, shell=shell, **env)
    workspace = guest.home / name
    if kind in ("curl", "git"):
        workspace.mkdir()
    done = guest.hydrate(workspace)
    assert done.code == 0, done.err
    fsck(workspace)
    assert sorted(path.name for path in guest.home.iterdir()) == sorted({name, "bin", "guest.sh"})
    (workspace / "new.txt").write_text("new\n")
    if kind != "upstream":
        session = f"newline-{kind}-{len(name)}"
        turn = guest.record(session, workspace).recorded(session)
        assert git("show", f"{turn}:new.txt", cwd=node.serve.mirror(WIDGETS)) == "new"
    done = guest.run(f"cd {quote(str(workspace))}; gitmirror_backfill")
    # Without its history, nothing can be missing from that.
    assert (done.code, done.out) in ((1, ""), (0, "backfilled nothing\n")), done.err
