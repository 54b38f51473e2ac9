"""`gitmirror_hydrate --only DIR`: a part of the tree, by each way, and more of it later."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import WIDGETS
from tests.support.generate import add_commit
from tests.support.gitutil import git, git_bytes
from tests.support.serve import Serve
from tests.support.upstream import HttpUpstream
from tests.workspace.conftest import EVERY_SHELL, SETTLED, Guest, Node
from tests.workspace.module_lab import by_git, hydrate

FILES = {
    "top.txt": "top\n",
    "a/one.txt": "one\n",
    "a/b/two.txt": "two\n",
    "a/other/three.txt": "three\n",
    "c/four.txt": "four\n",
    "odd [x] ü/five.txt": "five\n",
    "odd/six.txt": "six\n",
}


@pytest.fixture(scope="module")
def parts_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node with a tree of some directories, a branch `side`, and a tag `v1`."""
    base = tmp_path_factory.mktemp("parts")
    with HttpUpstream(base / "upstream") as upstream:
        bare = upstream.add(WIDGETS)
        add_commit(bare, "main", {name: f"old {text}" for name, text in FILES.items()})
        add_commit(bare, "main", FILES)
        git("tag", "v1", "main", cwd=bare)
        git("branch", "side", "main", cwd=bare)
        with Serve(base / "state", repos=[upstream.url(WIDGETS)], refresh=SETTLED).start() as serve:
            serve.wait_for_repo(WIDGETS)
            made = Node(serve, upstream)
            made.wait_for_snapshot()
            yield made


def files_of(workspace: Path) -> set[str]:
    """The files of a workspace."""
    found = (path.relative_to(workspace) for path in workspace.rglob("*") if path.is_file())
    return {str(path) for path in found if path.parts[0] != ".git"}


def missing(guest: Guest, workspace: Path) -> int:
    """How many blobs of HEAD are not there."""
    said = guest.git("rev-list", "--objects", "--no-object-names", "--missing=print", "HEAD^{tree}", cwd=workspace)
    return said.count("?")


@pytest.mark.slow
@pytest.mark.parametrize("shell", EVERY_SHELL)
@pytest.mark.parametrize("way", ["snapshot", "mirror"])
def test_only_these_directories_are_there(parts_node: Node, tmp_path: Path, shell: str, way: str) -> None:
    """As cone mode has it, in any shape and of any ref; more comes from the mirror; what is written is recorded."""
    guest = parts_node.guest(tmp_path / "home", shell=shell)
    if way == "mirror":
        guest = by_git(parts_node, guest)
    before = len(parts_node.upstream.requests)
    cone = {"top.txt", "a/one.txt", "a/b/two.txt", "odd [x] ü/five.txt"}
    commit = git("rev-parse", "main", cwd=parts_node.upstream.path(WIDGETS))
    # Two of them in each shell, and all of them by each way.
    wanted = [("", ""), ("side", "--tip"), ("v1", "--history"), (commit, "--tip")]
    first = (EVERY_SHELL.index(shell) + (way == "mirror")) % 2
    for number, (want, shape) in enumerate(wanted[first::2]):
        place = guest.home / f"ws{number}"
        options = ["--only", "a/b/", "--only=odd [x] ü", *([shape] if shape else [])]
        # Of a tag there is no snapshot.
        hydrate(guest, place, want, *options).hydrated(via="mirror" if want == "v1" else way)
        assert files_of(place) == cone
        listed = guest.git("sparse-checkout", "list", cwd=place).splitlines()
        assert listed == ["a/b", '"odd [x] \\303\\274"']
        assert guest.git("status", "--porcelain", cwd=place) == ""
        if way == "mirror":
            assert missing(guest, place) == 3
        assert guest.git("config", "remote.origin.url", cwd=place) == parts_node.upstream.url(WIDGETS)
        guest.git("sparse-checkout", "add", "c", cwd=place)
        assert files_of(place) == {*cone, "c/four.txt"}
        assert guest.git("status", "--porcelain", cwd=place) == ""
    assert len(parts_node.upstream.requests) == before

    (place / "a/b/two.txt").write_text("mine\n")
    (place / "odd").mkdir()
    (place / "odd/new.txt").write_text("outside\n")
    session = f"parts-{shell}-{way}"
    turn = guest.record(session, place).recorded(session)
    mirror = parts_node.serve.mirror(WIDGETS)
    assert git("diff", "--name-only", commit, turn, cwd=mirror).split() == ["a/b/two.txt", "odd/new.txt"]
    assert git_bytes("show", f"{turn}:odd/new.txt", cwd=mirror)[1] == b"outside\n"

    again = guest.home / "again"
    assert hydrate(guest, again, f"session:{session}", "--only", "odd").hydrated(via=way) == turn
    assert files_of(again) == {"top.txt", "odd/six.txt", "odd/new.txt"}
    assert guest.git("status", "--porcelain", cwd=again) == ""


@pytest.mark.slow
def test_what_is_no_directory_is_named(parts_node: Node, tmp_path: Path) -> None:
    """What can be none is a wrong usage; what is none in this commit is named, and the rest is there."""
    guest = parts_node.guest(tmp_path / "home")
    place = guest.home / "ws"
    for bad in ("", "/", "/etc", "..", "a/../c", "./a", "a//b", "-x", "a\nb"):
        done = hydrate(guest, place, "", "--only", bad)
        assert (done.code, done.out) == (2, ""), (bad, done)
        assert "directory of the repository" in done.err and not place.exists()
    assert hydrate(guest, place, "", "--only").code == 2
    for number, way in enumerate(("snapshot", "mirror")):
        place = guest.home / f"ws{number}"
        by = guest if way == "snapshot" else by_git(parts_node, guest)
        done = hydrate(by, place, "", "--only", "no/where", "--only", "c")
        # The mirror may refuse a tar of what it does not have.
        assert done.hydrated(via="mirror" if "the snapshot failed" in done.err else way)
        assert "has no directory no/where" in done.err
        assert files_of(place) == {"top.txt", "c/four.txt"}


@pytest.mark.slow
def test_a_part_of_the_next_commit(parts_node: Node, tmp_path: Path) -> None:
    """A workspace that has to be moved to what was asked for stays a part."""
    guest = parts_node.guest(tmp_path / "home")
    old = git("rev-parse", "main~1", cwd=parts_node.upstream.path(WIDGETS))
    place = guest.home / "ws"
    assert hydrate(guest, place, old, "--only", "c").hydrated(via="snapshot") == old
    assert files_of(place) == {"top.txt", "c/four.txt"}
    assert (place / "c/four.txt").read_text() == "old four\n"
    assert guest.git("status", "--porcelain", cwd=place) == ""


@pytest.mark.slow
def test_a_part_from_the_upstream(parts_node: Node, tmp_path: Path) -> None:
    """The same when the mirror is gone."""
    guest = parts_node.guest(tmp_path / "home").with_(GITMIRROR_HTTP="", GITMIRROR_GIT="git://127.0.0.1:1")
    place = guest.home / "ws"
    hydrate(guest, place, "", "--only", "a/b").hydrated(via="upstream")
    assert files_of(place) == {"top.txt", "a/one.txt", "a/b/two.txt"}
    assert guest.git("status", "--porcelain", cwd=place) == ""
