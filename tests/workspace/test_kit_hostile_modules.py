"""A hostile `.gitmodules` runs and reaches nothing; one bad submodule costs neither the others nor the workspace."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import WIDGETS
from tests.support.generate import add_commit
from tests.support.gitutil import git, git_result
from tests.support.serve import Serve
from tests.support.upstream import HttpUpstream
from tests.workspace.conftest import SETTLED, Node
from tests.workspace.module_lab import LIB, by_git, hydrate, link, section

pytestmark = pytest.mark.slow
URLS = {
    "ext": "ext::touch PROOF",
    "option": "-u./touch PROOF",
    "upload": "--upload-pack=touch PROOF",
    "file": "file://PROOF",
    "path": "PROOF",
    "ssh": "ssh://-oProxyCommand=touch%20PROOF/x",
    "above": "../../../../../../etc",
    "newline": '"../lib\\n[core]"',
    "empty": '""',
}
"""URLs of submodules that are named after them."""
TRICKS = {
    "urls": "".join(section(name, name, url) for name, url in URLS.items()),
    "command": section("bad", "bad", "../lib", "update = !touch PROOF"),
    "name": section("../../../bad", "bad", "../lib"),
    "twice": section("one", "bad", "../lib") + section("two", "bad", "ext::touch PROOF"),
    "twice-the-other-way": section("one", "bad", "ext::touch PROOF") + section("two", "bad", "../lib"),
    "elsewhere": section("up", "../../../outside", "../lib") + section("bad", "bad", "ext::touch PROOF"),
    "nothing": "",
    "broken": section("bad", "bad", "../lib") + "[submodule\n",
}
"""A `.gitmodules` for submodules that stay empty in each case: `bad`, or those of the URLs."""
REFUSED = ("command", "broken")
"""Files that git refuses as a whole."""
RING = [f"acme/ring{number}" for number in range(5)]


def bad_of(trick: str) -> list[str]:
    """The submodules that stay empty."""
    return list(URLS) if trick == "urls" else ["bad"]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, generated_bare: Path) -> Iterator[Node]:
    """A node whose repositories are about to become hostile; it serves their branches by git."""
    base = tmp_path_factory.mktemp("hostile")
    with HttpUpstream(base / "upstream") as upstream:
        bare = upstream.add(WIDGETS, generated_bare)
        lib = add_commit(upstream.add(LIB), "main", {"lib.txt": "lib\n"})
        for name, text in TRICKS.items():
            git("branch", name, "main", cwd=bare)
            text = section("good", "good", "../lib") + text.replace("PROOF", str(base / "proof"))
            link(bare, text, {"good": lib, **dict.fromkeys(bad_of(name), lib)}, name)
        # Each of the ring has the one before, at an older commit, for more levels than anybody follows.
        for name in RING:
            add_commit(upstream.add(name), "main", {"ring.txt": f"{name}\n"})
        for turn in range(15):
            inner = RING[(turn - 1) % 5]
            tip = git("rev-parse", "main", cwd=upstream.path(inner))
            link(upstream.path(RING[turn % 5]), section(inner, inner[5:], f"../{inner[5:]}"), {inner[5:]: tip})
        git("branch", "ring", "main", cwd=bare)
        tip = git("rev-parse", "main", cwd=upstream.path(RING[14 % 5]))
        link(bare, section("ring", "ring", f"../{RING[14 % 5][5:]}"), {"ring": tip}, "ring")
        names = [WIDGETS, LIB, *RING]
        with Serve(base / "state", repos=[upstream.url(name) for name in names], refresh=SETTLED).start() as serve:
            for name in names:
                serve.wait_for_repo(name)
            made = Node(serve, upstream)
            made.wait_for_snapshot()
            yield made


@pytest.mark.parametrize("trick", TRICKS)
def test_it_reaches_nothing(hostile: Node, tmp_path: Path, trick: str) -> None:
    """The submodule stays empty, nothing is run or written beside the workspace, and the other one is there."""
    guest = hostile.guest(tmp_path / "home")
    proof = Path(hostile.upstream.root.parent / "proof")
    clone = guest.home / "clone"
    guest.git("clone", "--quiet", "--branch", trick, hostile.upstream.url(WIDGETS), str(clone), cwd=tmp_path)
    for number, way in enumerate(("snapshot", "mirror")):
        by = guest if way == "snapshot" else by_git(hostile, guest)
        place = guest.home / f"ws{number}"
        before = {*guest.home.rglob("*"), *tmp_path.glob("*")}
        done = hydrate(by, place, trick, "--submodules", "--tip")
        assert done.hydrated(via=way) == git("rev-parse", trick, cwd=hostile.upstream.path(WIDGETS))
        assert not proof.exists()
        for bad in bad_of(trick):
            assert list((place / bad).iterdir()) == []
        if trick in REFUSED:
            # git itself takes no submodule at all from these, and says in any clone only that the file is bad.
            assert list((place / "good").iterdir()) == []
        else:
            assert (place / "good/lib.txt").read_text() == "lib\n", done.err
        made = {*guest.home.rglob("*"), *tmp_path.glob("*")} - before
        assert {path for path in made if place != path and place not in path.parents} == set()
        for workspace in (place, clone):
            said = git_result("status", "--porcelain", cwd=workspace, env=guest.environment())
            assert said[:2] == (128 if trick in REFUSED else 0, ""), (workspace, said)
        for bad in bad_of(trick):
            assert trick in ("nothing", "name", "broken") or f"submodule {bad} is left empty: " in done.err


@pytest.mark.parametrize("way", ["snapshot", "mirror"])
def test_a_ring_ends(hostile: Node, tmp_path: Path, way: str) -> None:
    """Those that contain each other are followed to a bound, within the deadline, and the workspace is there."""
    guest = hostile.guest(tmp_path / "home", GITMIRROR_DEADLINE="50")
    place = guest.home / "ws"
    done = hydrate(guest if way == "snapshot" else by_git(hostile, guest), place, "ring", "--submodules")
    done.hydrated(via=way)
    assert "is left empty: there are too many submodules, or they are too deep" in done.err
    assert max(len(path.relative_to(place).parts) - 1 for path in place.rglob("ring.txt")) == 8
    # Those that were left empty are as a clone has them.
    guest.git("submodule", "status", "--recursive", cwd=place)
    assert guest.git("status", "--porcelain", "--ignore-submodules=none", cwd=place) == ""


def test_a_deadline_ends_a_ring(hostile: Node, tmp_path: Path) -> None:
    """The workspace is there when time is up, with what came until then. Each submodule takes two seconds."""
    slow_git = tmp_path / "bin" / "git"
    slow_git.parent.mkdir()
    slow_git.write_text(
        f'#!/bin/sh\ncase " $* " in *" submodule "*) sleep 2 ;; esac\nexec {shutil.which("git")} "$@"\n'
    )
    slow_git.chmod(0o755)
    path = f"{slow_git.parent}{os.pathsep}{os.environ['PATH']}"
    guest = by_git(hostile, hostile.guest(tmp_path / "home", GITMIRROR_DEADLINE="6", PATH=path))
    place = guest.home / "ws"
    done = hydrate(guest, place, "ring", "--submodules")
    done.hydrated(via="mirror")
    assert "is left empty: " in done.err
    # Without the deadline it is followed to eight.
    depths = [len(path.relative_to(place).parts) - 1 for path in place.rglob("ring.txt")]
    assert max(depths, default=0) < 8
    guest.git("submodule", "status", "--recursive", cwd=place)
    guest.git("status", "--porcelain", cwd=place)
