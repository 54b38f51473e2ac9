"""`gitmirror_hydrate --submodules`, by each of its ways."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.core.workspace.times import INDEX_TIME
from tests.conftest import WIDGETS
from tests.support.gitutil import git, refs
from tests.support.serve import Serve
from tests.support.upstream import HttpUpstream
from tests.workspace.conftest import BUSYBOX, CURL, EVERY_SHELL, SETTLED, SHELLS, Guest, Node
from tests.workspace.module_lab import DEEP, FAR, LIB, MIRRORED, Family, by_git, config, hydrate, status

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory, generated_bare: Path) -> Iterator[Node]:
    """A node that mirrors the family but `far`."""
    base = tmp_path_factory.mktemp("family")
    with HttpUpstream(base / "upstream") as upstream:
        Family(upstream).build(generated_bare)
        urls = [upstream.url(name) for name in MIRRORED]
        with Serve(base / "state", repos=urls, refresh=SETTLED).start() as serve:
            for name in MIRRORED:
                serve.wait_for_repo(name)
            made = Node(serve, upstream)
            made.wait_for_snapshot()
            yield made


def whole(node: Node, guest: Guest, workspace: Path) -> None:
    """Assert that all submodules that the node has are as git leaves them, and that `far` is empty."""
    assert status(guest, workspace) == {"libs/lib": "", "libs/lib/deps/deep": "", "far": "-"}
    assert guest.git("status", "--porcelain", "--ignore-submodules=none", cwd=workspace) == ""
    assert list((workspace / "far").iterdir()) == []
    lib, deep = workspace / "libs/lib", workspace / "libs/lib/deps/deep"
    assert (deep / "deep.txt").read_text() == "deep\n"
    assert config(guest, lib, "remote.origin.url") == node.upstream.url(LIB)
    assert config(guest, deep, "remote.origin.url") == f"{node.upstream.url(DEEP)}.git"
    assert config(guest, workspace, "submodule.lib.url") == node.upstream.url(LIB)
    assert guest.git("symbolic-ref", "--quiet", "HEAD", cwd=workspace) != ""
    assert (lib / ".git").read_text() == "gitdir: ../../.git/modules/lib\n"


@pytest.mark.parametrize(
    ("way", "shape", "shell"),
    [
        *(("snapshot", ("", "--tip")[place % 2], shell) for place, shell in enumerate(EVERY_SHELL)),
        *(("mirror", "--history", shell) for shell in EVERY_SHELL),
    ],
)
def test_what_is_mirrored_is_there(family: Node, tmp_path: Path, shell: str, way: str, shape: str) -> None:
    """To any depth, at the recorded commit, with the real URLs; what is not mirrored is empty, and named."""
    guest = family.guest(tmp_path / "home", shell=shell)
    if way == "mirror":
        guest = by_git(family, guest)
    place = guest.home / "ws"
    before = len(family.upstream.requests)
    done = hydrate(guest, place, "", "--submodules", *([shape] if shape else []))
    done.hydrated(via=way)
    whole(family, guest, place)
    assert "submodule far is left empty: " in done.err and family.upstream.url(FAR) in done.err
    assert done.err.count("submodule") == 1, done.err
    assert len(family.upstream.requests) == before
    depth = guest.git("rev-list", "--count", "HEAD", cwd=place / "libs/lib")
    assert depth == ("1" if shape == "--tip" else "3")


@pytest.mark.parametrize("tools", [CURL, (*BUSYBOX, "touch")], ids=["curl", "busybox"])
def test_links_in_them_have_times_that_tell_them_apart(family: Node, tmp_path: Path, tools: tuple[str, ...]) -> None:
    """As those of the repository itself; see test_same_size.py."""
    guest = family.guest(tmp_path / "home", tools=tools)
    hydrate(guest, guest.home / "ws", "", "--submodules").hydrated(via="snapshot")
    links = [guest.home / "ws/libs/lib/deps/deep" / name for name in ("to-a", "to-b")]
    times = {link.lstat().st_mtime for link in links}
    assert len(times) == 2 and max(times) < INDEX_TIME
    assert guest.git("status", "--porcelain", cwd=links[0].parent) == ""


def test_none_are_there_unless_asked_for(family: Node, tmp_path: Path) -> None:
    """The node's default is no."""
    guest = family.guest(tmp_path / "home")
    for number, options in enumerate(([], ["--no-submodules"], ["--submodules", "--no-submodules"])):
        place = guest.home / f"ws{number}"
        done = hydrate(guest, place, "", *options)
        done.hydrated(via="snapshot")
        assert (done.err, set(status(guest, place).values())) == ("", {"-"})


@pytest.mark.parametrize("shell", SHELLS)
def test_a_session_has_its_submodules(family: Node, tmp_path: Path, shell: str) -> None:
    """What was recorded in a submodule, also in a nested one, comes back with the session, in another guest."""
    session = f"inner-{shell}"
    guest = family.guest(tmp_path / "home", shell=shell)
    place = guest.home / "ws"
    hydrate(guest, place, "", "--submodules").hydrated(via="snapshot")
    assert guest.record(session, place).out == "recorded nothing\n"
    (place / "libs/lib/deps/deep/deep.txt").write_text("mine\n")
    (place / "libs/lib/new.txt").write_text("mine too\n")
    turn = guest.record(session, place).recorded(session)
    for name in (LIB, DEEP):
        assert f"refs/agents/{session}" in refs(family.serve.mirror(name))
    before = len(family.upstream.requests)
    # By both ways in one shell, by one of them in each of the others.
    for way in {"dash": ("snapshot", "mirror"), "busybox": ("mirror",)}.get(shell, ("snapshot",)):
        other = family.guest(tmp_path / way, shell=shell)
        other = by_git(family, other) if way == "mirror" else other
        again = other.home / "again"
        assert hydrate(other, again, f"session:{session}", "--submodules").hydrated(via=way) == turn
        assert status(other, again) == {"libs/lib": "", "libs/lib/deps/deep": "", "far": "-"}
        assert (again / "libs/lib/deps/deep/deep.txt").read_text() == "mine\n"
        assert (again / "libs/lib/new.txt").read_text() == "mine too\n"
        assert other.git("status", "--porcelain", "--ignore-submodules=none", cwd=again) == ""
    assert len(family.upstream.requests) == before
    # It goes on from there.
    (again / "libs/lib/deps/deep/more.txt").write_text("more\n")
    other.record(session, again).recorded(session)


def test_submodules_follow_to_another_commit(family: Node, tmp_path: Path) -> None:
    """From a tar that has them at the tip: to another commit, and away, with nothing left behind."""
    guest = family.guest(tmp_path / "home")
    bare = family.upstream.path(WIDGETS)
    older, none = git("rev-parse", "older", cwd=bare), git("rev-parse", "main~2", cwd=bare)
    before = len(family.upstream.requests)
    for number, options in enumerate((["--submodules"], ["--submodules", "--tip"])):
        place = guest.home / f"ws{number}"
        assert hydrate(guest, place, older, *options).hydrated(via="snapshot") == older
        assert status(guest, place) == {"libs/lib": ""}
        assert (place / "libs/lib/lib.txt").read_text() == "lib\n"
        assert not (place / "libs/lib/deps").exists()
        assert guest.git("status", "--porcelain", "--ignore-submodules=none", cwd=place) == ""
        assert config(guest, place / "libs/lib", "remote.origin.url") == family.upstream.url(LIB)
        place = guest.home / f"none{number}"
        assert hydrate(guest, place, none, *options).hydrated(via="snapshot") == none
        assert guest.git("status", "--porcelain", cwd=place) == ""
        assert not (place / "libs").exists()
        assert guest.record(f"moved-{number}", place).out == "recorded nothing\n"
    assert len(family.upstream.requests) == before


def test_from_the_upstream(family: Node, tmp_path: Path) -> None:
    """With the mirror gone, all of them come from their own URLs."""
    guest = family.guest(tmp_path / "home").with_(GITMIRROR_HTTP="", GITMIRROR_GIT="git://127.0.0.1:1")
    place = guest.home / "ws"
    hydrate(guest, place, "", "--submodules").hydrated(via="upstream")
    assert status(guest, place) == {"libs/lib": "", "libs/lib/deps/deep": "", "far": ""}
    assert config(guest, place / "far", "remote.origin.url") == family.upstream.url(FAR)
    assert config(guest, place / "libs/lib", "remote.gitmirror.url").endswith("/acme/lib")


def test_the_mirror_goes_first_for_old_contents(family: Node, tmp_path: Path) -> None:
    """A submodule is noted like the workspace, so that what it lacks comes from the mirror, and `record` finds it."""
    guest = by_git(family, family.guest(tmp_path / "home"))
    place = guest.home / "ws"
    hydrate(guest, place, "", "--submodules", "--only", "libs").hydrated(via="mirror")
    assert status(guest, place)["libs/lib"] == ""
    assert config(guest, place / "libs/lib", "gitmirror.repository") == LIB
    assert not (place / "far/.git").exists()
    before = len(family.upstream.requests)
    guest.git("log", "-p", cwd=place / "libs/lib/deps/deep")
    guest.git("-c", "protocol.version=2", "fetch", "gitmirror", cwd=place / "libs/lib")
    assert len(family.upstream.requests) == before


def test_submodules_in_the_part_alone(family: Node, tmp_path: Path) -> None:
    """Those outside of the directories of `--only` are not fetched, and not named."""
    guest = family.guest(tmp_path / "home")
    for number, way in enumerate(("snapshot", "mirror")):
        place = guest.home / f"ws{number}"
        by = guest if way == "snapshot" else by_git(family, guest)
        done = hydrate(by, place, "", "--submodules", "--only", "src")
        done.hydrated(via=way)
        assert "submodule libs" not in done.err
        assert guest.git("status", "--porcelain", "--ignore-submodules=none", cwd=place) == ""
        # git keeps a submodule that was there before the part was cut out of a whole tar.
        assert way == "snapshot" or not (place / "libs/lib/.git").exists()


def test_the_redirect_serves_a_recursive_clone(family: Node, tmp_path: Path) -> None:
    """By plain git, those that the mirror lists."""
    guest = family.guest(tmp_path / "home")
    assert guest.run("gitmirror_redirect").code == 0
    before = len(family.upstream.requests)
    place = guest.home / "ws"
    url = family.upstream.url(WIDGETS)
    guest.git("clone", "--quiet", "--recurse-submodules=libs", url, str(place), cwd=guest.home)
    assert status(guest, place) == {"libs/lib": "", "libs/lib/deps/deep": "", "far": "-"}
    assert len(family.upstream.requests) == before
