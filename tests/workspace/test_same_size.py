"""Files of one size replace each other and keep their mtimes: git must still see the change."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.core.workspace.times import FIRST_TIME, INDEX_TIME
from tests.conftest import WIDGETS
from tests.support.generate import add_commit
from tests.support.gitutil import git, git_bytes, run_process
from tests.workspace.conftest import BUSYBOX, CURL, NOTHING, Guest, Node

FILES: dict[str, str | bytes | None] = {
    "a.txt": "first\n",
    "b.txt": "other\n",
    "one/c.txt": "in 1\n",
    "one/d.txt": "is 1\n",
    "two/c.txt": "in 2\n",
    "two/d.txt": "is 2\n",
}
BOTH = {"one/c.txt", "one/d.txt"}
WAYS = {
    "mv": ("mv b.txt a.txt", {"a.txt", "b.txt"}),
    "cp -p": ("cp -p b.txt a.txt", {"a.txt"}),
    "swap": ("mv a.txt x && mv b.txt a.txt && mv x b.txt", {"a.txt", "b.txt"}),
    "ln -f": ("ln -f b.txt a.txt", {"a.txt"}),
    "cp -a": ("cp -a two/. one/", BOTH),
    "tar": ("tar -cf - -C two . | tar -xf - -C one", BOTH),
    "directories": ("mv one x && mv two one && mv x two", {*BOTH, "two/c.txt", "two/d.txt"}),
    "link": ("mv to-b to-a", {"to-a", "to-b"}),
    "edit": ("printf 'fresh\\n' > a.txt", {"a.txt"}),
}
TOPS = {"": "", **{name: f"way{number}/" for number, name in enumerate(WAYS)}}
"""The files are there once for each of the ways, and at the top."""


@pytest.fixture(scope="module")
def pairs(node: Node) -> Node:
    """A node whose repository has files, directories and links that differ in nothing that stat tells."""
    bare = node.upstream.path(WIDGETS)
    add_commit(bare, "main", {f"{top}{name}": data for top in TOPS.values() for name, data in FILES.items()})
    links = "".join(
        f"M 120000 inline {top}to-{name}\ndata {len(target)}\n{target}\n"
        for top in TOPS.values()
        for name, target in (("a", "a.txt"), ("b", "b.txt"))
    )
    who = "committer Ada <ada@example.com> 1700000000 +0000\n"
    stream = f"commit refs/heads/main\n{who}data 5\nLinks\nfrom refs/heads/main^0\n{links}\n"
    git("fast-import", "--quiet", cwd=bare, input=stream)
    node.refresh()
    node.wait_for_snapshot()
    return node


def by_snapshot(guest: Guest, workspace: Path) -> None:
    """The tar, unpacked by the guest's tar."""
    guest.hydrate(workspace).hydrated(via="snapshot")


def by_mirror(guest: Guest, workspace: Path) -> None:
    """git, from the mirror."""
    guest.hydrate(workspace).hydrated(via="mirror")


def by_clone(guest: Guest, workspace: Path) -> None:
    """A clone by hand."""
    address = f"{guest.env['MIRROR']}/{WIDGETS}"
    guest.git("clone", "--quiet", "--depth=1", address, str(workspace), cwd=guest.home)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "shell", "tools"),
    [
        (by_snapshot, "dash", CURL),
        (by_snapshot, "busybox", BUSYBOX),
        (by_mirror, "dash", NOTHING),
        (by_clone, "dash", NOTHING),
    ],
    ids=["snapshot", "busybox", "mirror", "clone"],
)
def test_a_file_in_the_place_of_another_is_recorded(
    pairs: Node,
    tmp_path: Path,
    make: Callable[[Guest, Path], None],
    shell: str,
    tools: tuple[str, ...],
) -> None:
    """`git status` names exactly what changed, and the turn has it, whichever way the workspace came to be."""
    guest = pairs.guest(tmp_path / "home", shell=shell, tools=tools, MIRROR=pairs.serve.git_url)
    workspace = guest.home / "ws"
    make(guest, workspace)
    assert guest.git("status", "--porcelain", cwd=workspace) == ""
    changed = {name: {f"{TOPS[name]}{path}" for path in paths} for name, (_, paths) in WAYS.items()}
    for name, (way, _) in WAYS.items():
        done = run_process(["sh", "-c", way], cwd=workspace / TOPS[name])
        assert done.returncode == 0, done.stderr
    _, status, _ = git_bytes("status", "--porcelain", "--no-renames", cwd=workspace)
    seen = [line[3:].decode() for line in status.splitlines()]
    assert {name: {path for path in seen if path.startswith(TOPS[name])} for name in WAYS} == changed
    assert len(seen) == sum(map(len, changed.values()))
    session = f"{make.__name__}-{shell}".replace("_", "-")
    turn = guest.record(session, workspace).recorded(session)
    mirror = pairs.serve.mirror(WIDGETS)
    names = [name for names in changed.values() for name in sorted(names)]
    asked = "".join(f"{turn}:{name}\n" for name in names)
    there = git_bytes("cat-file", "--batch", cwd=mirror, input=asked)[1]
    for name in names:
        path, (head, _, there) = workspace / name, there.partition(b"\n")
        if path.is_symlink() or path.exists():
            here = bytes(path.readlink()) if path.is_symlink() else path.read_bytes()
            assert there.startswith(here + b"\n") and head.endswith(b" blob %d" % len(here)), name
            there = there[len(here) + 1 :]
        else:
            assert head == f"{turn}:{name} missing".encode()
    assert there == b""


WITH_TOUCH = (*BUSYBOX, "touch")


@pytest.mark.parametrize(("shell", "tools"), [("dash", CURL), ("dash", WITH_TOUCH), ("busybox", WITH_TOUCH)])
def test_links_have_times_that_tell_them_apart(pairs: Node, tmp_path: Path, shell: str, tools: tuple[str, ...]) -> None:
    """Of the tar or from the kit: busybox's tar leaves them with the time of unpacking, most of them with the same."""
    guest = pairs.guest(tmp_path / "home", shell=shell, tools=tools)
    by_snapshot(guest, guest.home / "ws")
    times = {(guest.home / "ws" / name).lstat().st_mtime for name in ("to-a", "to-b")}
    assert len(times) == 2
    assert all(FIRST_TIME <= each < INDEX_TIME for each in times)
    assert guest.git("status", "--porcelain", cwd=guest.home / "ws") == ""


def test_links_that_cannot_be_dated_are_told_apart_by_git(pairs: Node, tmp_path: Path) -> None:
    """Here there is no `touch`: git compares all that it knows of a file, as in a clone."""
    guest = pairs.guest(tmp_path / "home", tools=BUSYBOX)
    workspace = guest.home / "ws"
    by_snapshot(guest, workspace)
    for name in ("to-a", "to-b"):
        os.utime(workspace / name, (FIRST_TIME, FIRST_TIME), follow_symlinks=False)
    assert guest.git("status", "--porcelain", cwd=workspace) == ""
    (workspace / "to-b").rename(workspace / "to-a")
    status = git_bytes("status", "--porcelain", "--no-renames", cwd=workspace)[1]
    assert status.splitlines() == [b" M to-a", b" D to-b"]
