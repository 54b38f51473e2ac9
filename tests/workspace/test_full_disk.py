"""A guest whose disk is full is told so, by whichever way the workspace comes, and in `record` and `backfill`, too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import WIDGETS
from tests.support.gitutil import git
from tests.workspace.conftest import BUSYBOX, CURL, GNU_WGET, NOTHING, Node
from tests.workspace.disk.drives_lab import Machine


@pytest.fixture
def machine() -> Iterator[Machine]:
    """A mount namespace of this test alone."""
    made = Machine()
    try:
        yield made
    finally:
        made.close()


def mount(machine: Machine, place: Path, size: str) -> None:
    """A file system of this size, in which nothing is yet."""
    place.mkdir()
    machine.run("mount", "-t", "tmpfs", "-o", f"size={size}", "small", str(place))


def fill(machine: Machine, place: Path) -> None:
    """Leave no room at all."""
    machine.run("sh", "-c", "! cat /dev/zero >.git/filler 2>/dev/null", cwd=place)


@pytest.mark.parametrize(
    ("tools", "shell"),
    [(CURL, "dash"), (BUSYBOX, "busybox"), (GNU_WGET, "mksh"), (NOTHING, "bash")],
    ids=["curl", "busybox", "wget", "git"],
)
@pytest.mark.parametrize("size", ["64k", "400k"])
def test_no_room_for_the_workspace(
    node: Node, machine: Machine, tmp_path: Path, tools: tuple[str, ...], shell: str, size: str
) -> None:
    """The reason and the place are named at once, nothing is left there, and no further source is tried."""
    guest = machine.guest(node.guest(tmp_path / "home", tools=tools, shell=shell))
    small = guest.home / "small"
    mount(machine, small, size)
    for place in (small / "ws", small):
        done = guest.hydrate(place)
        assert (done.code, done.out) == (1, ""), done.err
        last = done.err.splitlines()[-1]
        assert last.startswith(f"gitmirror: the disk of {place} is full: "), done.err
        assert "fetching from" not in done.err
        assert list(machine.path(small).iterdir()) == []


def test_no_room_for_a_turn(node: Node, machine: Machine, tmp_path: Path) -> None:
    """What was changed is still there, and is recorded once there is room."""
    guest = machine.guest(node.guest(tmp_path / "home", tools=CURL))
    small = guest.home / "small"
    mount(machine, small, "20m")
    guest.hydrate(small).hydrated(via="snapshot")
    workspace = machine.path(small)
    (workspace / "new.txt").write_text("new\n")
    fill(machine, small)
    done = guest.record("full", small)
    assert (done.code, done.out) == (1, "")
    assert f"gitmirror: the disk of {small}/.git is full; nothing was recorded" in done.err
    assert "git-lfs" not in done.err
    (workspace / ".git" / "filler").unlink()
    turn = guest.record("full", small).recorded("full")
    assert git("show", f"{turn}:new.txt", cwd=node.serve.mirror(WIDGETS)) == "new"


def test_a_file_that_does_not_fit(node: Node, machine: Machine, tmp_path: Path) -> None:
    """There is room for little files, but not for this one."""
    guest = machine.guest(node.guest(tmp_path / "home", tools=CURL))
    small = guest.home / "small"
    mount(machine, small, "20m")
    guest.hydrate(small).hydrated(via="snapshot")
    script = "head -c 11000000 /dev/urandom >big"
    machine.run("sh", "-c", script, cwd=small)
    done = guest.record("big", small)
    assert (done.code, done.out) == (1, "")
    assert f"gitmirror: the disk of {small}/.git is full; nothing was recorded" in done.err


def test_no_room_for_old_contents(node: Node, machine: Machine, tmp_path: Path) -> None:
    """The mirror is not asked again over the other port, nor the upstream."""
    guest = machine.guest(node.guest(tmp_path / "home", tools=CURL))
    small = guest.home / "small"
    mount(machine, small, "20m")
    url = f"{node.serve.git_url}/{WIDGETS}"
    machine.run("git", "clone", "--quiet", "--filter=blob:none", url, str(small))
    machine.run("git", "config", "gitmirror.repository", WIDGETS, cwd=small)
    fill(machine, small)
    done = guest.run(f"cd '{small}'; gitmirror_backfill")
    assert (done.code, done.out) == (1, "")
    last = done.err.splitlines()[-1]
    assert last.startswith(f"gitmirror: the disk of {small}/.git is full"), done.err
    assert "fetching from" not in done.err
