"""One directory, several hydrations: one of them fills it, whoever else comes, and whatever a dead one has left."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.conftest import WIDGETS
from tests.support.gitutil import fsck, git, kill_group, wait_until
from tests.support.processes import processes_of
from tests.workspace.conftest import CURL, EVERY_SHELL, NOTHING, ROUNDS, Guest, Node
from tests.workspace.lab import tree_of
from tests.workspace.proxy import Fault, Proxy

SOURCES = pytest.mark.parametrize("tools", [CURL, NOTHING], ids=["snapshot", "git"])
PLACES = pytest.mark.parametrize("exists", [True, False], ids=["exists", "new"])


def assert_whole(node: Node, workspace: Path) -> None:
    """It is the tip, clean and complete, and nothing else is in it or beside it."""
    assert git("rev-parse", "HEAD", cwd=workspace) == node.tip
    assert git("status", "--porcelain", "--ignored", cwd=workspace) == ""
    fsck(workspace)
    assert not [*workspace.glob(".gitmirror*"), *workspace.parent.glob(".gitmirror*")]


def race(guest: Guest, workspace: Path, count: int = 2) -> list[tuple[int, str]]:
    """Hydrate `count` times at once; return code and stderr of each, the best first."""
    running = [guest.start("hydrate", WIDGETS, str(workspace)) for _ in range(count)]
    said = [process.communicate(timeout=60)[1].decode() for process in running]
    return sorted((process.returncode, text) for process, text in zip(running, said, strict=True))


def refused(said: str) -> bool:
    """Whether stderr says that another one has DIR, or had it."""
    return "another hydration, process " in said or "is not empty; nothing was changed" in said


@pytest.mark.slow
@SOURCES
@pytest.mark.parametrize("shell", EVERY_SHELL)
def test_of_several_at_once_one_fills_the_directory(
    node: Node, tmp_path: Path, shell: str, tools: tuple[str, ...]
) -> None:
    """Some rounds: one ends with 0 and a whole workspace, each other one with 1 and says why.

    There are two and three at once, and DIR exists in every other pair of rounds.
    """
    extra = ("printf",) if shell == "mksh" else ()
    guest = node.guest(tmp_path / "home", shell=shell, tools=(*tools, *extra))
    for number in range(4 * ROUNDS):
        workspace = guest.home / f"round{number}" / "ws"
        workspace.mkdir(parents=True) if number % 4 < 2 else workspace.parent.mkdir()
        results = race(guest, workspace, 2 + number % 2)
        assert [code for code, _ in results] == [0, *[1] * (len(results) - 1)], results
        assert all(refused(said) for _, said in results[1:]), results
        assert_whole(node, workspace)


@pytest.fixture
def slow(node: Node) -> Iterator[tuple[Node, Proxy]]:
    """The node, and a proxy before its HTTP port whose snapshot hardly goes on from its middle."""
    http = urlsplit(node.serve.http_url)
    assert http.hostname and http.port
    with Proxy((http.hostname, http.port)) as proxy:
        proxy.fault = Fault("dribble", only=b"workspace.tar", after=60_000)
        yield node, proxy


def begin(guest: Guest, workspace: Path) -> subprocess.Popen[bytes]:
    """Start a hydration and wait until half of the workspace is there."""
    process = guest.start("hydrate", WIDGETS, str(workspace))
    beside = (workspace.parent, workspace)
    wait_until(
        lambda: any(list(place.glob(".gitmirror*/*/.gitmirror.*/*")) for place in beside),
        message="half of a workspace",
    )
    return process


@PLACES
def test_a_hydration_that_lives_is_spared(slow: tuple[Node, Proxy], tmp_path: Path, exists: bool) -> None:
    """A second one is refused and touches nothing of it; when the first one has ended, DIR is free."""
    node, proxy = slow
    guest = node.guest(tmp_path / "home", tools=CURL, GITMIRROR_HTTP=f"http://127.0.0.1:{proxy.port}")
    workspace = guest.home / "place" / "ws"
    workspace.mkdir(parents=True) if exists else workspace.parent.mkdir()
    first = begin(guest, workspace)
    try:
        before = tree_of(workspace.parent)
        done = guest.hydrate(workspace)
        assert (done.code, done.out) == (1, "")
        assert f"another hydration, process {first.pid}, is at work" in done.err
        # The first one may still unpack meanwhile, so more may be there, but nothing may be missing.
        assert before.keys() <= tree_of(workspace.parent).keys()
        first.terminate()
        first.communicate(timeout=60)
    finally:
        kill_group(first)
    proxy.fault = None
    guest.hydrate(workspace).hydrated(via="snapshot")
    assert_whole(node, workspace)


@pytest.mark.slow
@PLACES
@pytest.mark.parametrize("shell", ["dash", pytest.param("busybox", marks=pytest.mark.slow)])
def test_what_a_killed_one_left_is_taken_over_once(
    slow: tuple[Node, Proxy], tmp_path: Path, shell: str, exists: bool
) -> None:
    """KILL gives no time to tidy up: of three that come after it one gets DIR, and the remains are gone."""
    node, proxy = slow
    guest = node.guest(tmp_path / "home", shell=shell, tools=CURL, GITMIRROR_HTTP=f"http://127.0.0.1:{proxy.port}")
    workspace = guest.home / "place" / "ws"
    workspace.mkdir(parents=True) if exists else workspace.parent.mkdir()
    first = begin(guest, workspace)
    first.kill()
    proxy.fault = None
    results = race(guest, workspace, 3)
    first.communicate(timeout=60)
    assert [code for code, _ in results] == [0, 1, 1], results
    assert all(refused(said) for _, said in results[1:]), results
    assert_whole(node, workspace)
    wait_until(lambda: not processes_of(guest.home), message="nothing of the killed one runs on")


def test_a_workspace_that_was_moved_by_half_is_taken_back(node: Node, tmp_path: Path) -> None:
    """Killed between two renames into DIR: what it moved goes, a file of somebody else keeps the next one out."""
    guest = node.guest(tmp_path / "home", tools=CURL)
    workspace = guest.home / "ws"
    workspace.mkdir()
    mv = guest.home / "bin" / "mv"
    guest.environment()
    real = mv.resolve()
    mv.unlink()
    mv.write_text(f'#!/bin/sh\nfor last; do :; done\n{real} "$1" "$2" "$last" && kill -KILL $PPID\n')
    mv.chmod(0o755)
    process = guest.start("hydrate", WIDGETS, str(workspace))
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    half = {path.name for path in workspace.iterdir()}
    assert len(half) == 3 and ".gitmirror" in half and ".git" not in half
    mv.unlink()
    mv.symlink_to(real)
    (workspace / "mine.txt").write_text("mine")
    done = guest.hydrate(workspace)
    assert done.code == 1 and "not empty" in done.err
    assert (workspace / "mine.txt").read_text() == "mine"
    (workspace / "mine.txt").unlink()
    guest.hydrate(workspace).hydrated(via="snapshot")
    assert_whole(node, workspace)


@pytest.mark.parametrize("owner", ["1 1 0b0ot", "4194303 77 {boot}", "{pid} 1 {boot}", None])
@pytest.mark.slow
def test_a_claim_of_nobody_is_no_hindrance(node: Node, tmp_path: Path, owner: str | None) -> None:
    """Of another boot, of a process that is gone, of a process id that is another's now, and one that nobody signed."""
    guest = node.guest(tmp_path / "home", tools=CURL)
    workspace = guest.home / "ws"
    turn = workspace / ".gitmirror" / "3"
    (turn / ".gitmirror.7").mkdir(parents=True)
    (turn / ".gitmirror.7" / "half.txt").write_text("half")
    if owner is not None:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        (turn / "owner").write_text(owner.format(boot=boot, pid=os.getpid()) + "\n")
    guest.hydrate(workspace).hydrated(via="snapshot")
    assert_whole(node, workspace)


@pytest.mark.slow
def test_a_file_that_comes_meanwhile_is_not_touched(slow: tuple[Node, Proxy], tmp_path: Path) -> None:
    """DIR was empty and is not any more when the workspace is ready: code 1, and the file is as it was."""
    node, proxy = slow
    guest = node.guest(tmp_path / "home", tools=CURL, GITMIRROR_HTTP=f"http://127.0.0.1:{proxy.port}")
    for name, made in (("inside", True), ("beside", False)):
        workspace = guest.home / name / "ws"
        workspace.mkdir(parents=True) if made else workspace.parent.mkdir()
        process = begin(guest, workspace)
        workspace.mkdir(exist_ok=True)
        (workspace / "README.md").write_text("mine")
        _, said = process.communicate(timeout=60)
        assert process.returncode == 1 and b"meanwhile" in said, said
        assert tree_of(workspace.parent) == {"ws": ("directory", b""), "ws/README.md": ("file", b"mine")}


def test_a_directory_that_is_made_after_the_claim_changes_nothing(slow: tuple[Node, Proxy], tmp_path: Path) -> None:
    """One that lives beside it is refused; what a killed one left beside it goes."""
    node, proxy = slow
    guest = node.guest(tmp_path / "home", tools=CURL, GITMIRROR_HTTP=f"http://127.0.0.1:{proxy.port}")
    workspace = guest.home / "place" / "ws"
    workspace.parent.mkdir()
    first = begin(guest, workspace)
    try:
        workspace.mkdir()
        assert f"process {first.pid}, is at work" in guest.hydrate(workspace).err
    finally:
        kill_group(first)
    proxy.fault = None
    guest.hydrate(workspace).hydrated(via="snapshot")
    assert_whole(node, workspace)
