"""The kit against a node that has everything: submodules, LFS files, parts of a tree, by each way, in each shell."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.access.conftest import SECRET, SETTLED, TOKEN, lock, write_secret
from tests.conftest import WIDGETS
from tests.lfs.node import HIDDEN, add_repository, needs_git_lfs
from tests.support.gitutil import git, wait_until
from tests.support.lfs_server import LfsServer, pointer_of
from tests.support.serve import Serve, Value
from tests.support.upstream import HttpUpstream
from tests.workspace.conftest import EVERY_SHELL, Guest, Node
from tests.workspace.module_lab import DEEP, LIB, hydrate, link, section, status

pytestmark = pytest.mark.slow
ONE, TWO, INNER, DEEPEST = (f"the contents of {name}\n".encode() * 5_000 for name in ("one", "two", "inner", "deepest"))
ODD = b"with characters that patterns have\n" * 100
FILES = {
    "libs/x,[y]\\z*?.bin": ODD,
    "one.bin": ONE,
    "dir/a two.bin": TWO,
    "libs/lib/inner.bin": INNER,
    "libs/lib/deps/deep/deepest.bin": DEEPEST,
}
"""The LFS files of a workspace with the submodules that anybody may read."""
PART = {name: data for name, data in FILES.items() if not name.startswith("dir/")}


@dataclass(frozen=True)
class World:
    """An upstream with LFS, and nodes of it by what their workspaces have in the place of LFS files."""

    lfs: LfsServer
    nodes: dict[str, Node]
    allowing: Serve

    @property
    def asked(self) -> int:
        """How often the upstream was asked for anything."""
        upstream = self.nodes["content"].upstream
        return len(upstream.requests) + len(self.lfs.requests)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """`acme/widgets` with `libs/lib`, in which is `deps/deep`, and with the private `hidden`; all have LFS files."""
    base = tmp_path_factory.mktemp("world")
    token_file = write_secret(base / "token", TOKEN + "\n")
    with ExitStack() as stack:
        upstream = stack.enter_context(HttpUpstream(base / "upstream"))
        lfs = stack.enter_context(LfsServer(base / "lfs", upstream))
        add_repository(upstream, lfs, DEEP, {"deepest.bin": DEEPEST})
        add_repository(upstream, lfs, LIB, {"inner.bin": INNER})
        add_repository(upstream, lfs, SECRET, {"hidden.bin": HIDDEN})
        add_repository(
            upstream,
            lfs,
            WIDGETS,
            {name: FILES[name] for name in ("one.bin", "dir/a two.bin", "libs/x,[y]\\z*?.bin")},
            **{"text.txt": b"text\n"},
        )
        tips = {name: git("rev-parse", "main", cwd=upstream.path(name)) for name in (DEEP, SECRET)}
        lib = link(upstream.path(LIB), section("deep", "deps/deep", "../deep.git"), {"deps/deep": tips[DEEP]})
        text = section("lib", "libs/lib", "../lib") + section("hidden", "more/hidden", "../secret")
        assert SECRET == "acme/secret"
        link(upstream.path(WIDGETS), text, {"libs/lib": lib, "more/hidden": tips[SECRET]})
        git("tag", "v1", "main", cwd=upstream.path(WIDGETS))
        lock(upstream, SECRET)
        credentials = [{"url": lfs.url(SECRET), "token_file": str(token_file)}]
        names = (WIDGETS, LIB, DEEP, SECRET)
        nodes: dict[str, Node] = {}
        for kind in ("content", "pointers"):
            serve = Serve(
                base / kind,
                repos=[lfs.url(name) for name in names],
                refresh=SETTLED,
                credentials=credentials,
                workspace={"lfs": kind},
            )
            nodes[kind] = Node(stack.enter_context(serve).start(), upstream)
        allow = [{"url": f"{lfs.url('acme')}/*", "interval": "1h"}]
        workspace: dict[str, Value] = {"lfs": "content", "submodules": True}
        allowing = stack.enter_context(Serve(base / "allowing", allow=allow, refresh=SETTLED, workspace=workspace))
        for node in nodes.values():
            for name in names:
                node.serve.wait_for_repo(name)
            node.wait_for_snapshot()
        yield World(lfs, nodes, allowing.start())


def assert_whole(guest: Guest, place: Path, files: dict[str, bytes]) -> None:
    """Assert that a workspace has exactly these LFS files, and that git sees no change in it or a submodule."""
    found = {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*.bin")}
    assert {name: data[:200] for name, data in found.items()} == {name: data[:200] for name, data in files.items()}
    assert found == files
    assert status(guest, place) == {"libs/lib": "", "libs/lib/deps/deep": "", "more/hidden": "-"}
    assert guest.git("status", "--porcelain", "--ignore-submodules=none", cwd=place) == ""


@pytest.mark.parametrize("shell", EVERY_SHELL)
def test_content_is_in_place(world: World, tmp_path: Path, shell: str) -> None:
    """By the tar and by git, in submodules and in a part of the tree; the upstream is asked once at most."""
    needs_git_lfs()
    guest = world.nodes["content"].guest(tmp_path / "home", shell=shell)
    # Of a tag there is no snapshot. Each shell takes the whole tree one way and a part of it the other way.
    ways = ("", "v1") if EVERY_SHELL.index(shell) % 2 else ("v1", "")
    for number, (want, options, files) in enumerate([(ways[0], [], FILES), (ways[1], ["--only", "libs"], PART)]):
        place = guest.home / f"ws{number}"
        before = world.asked
        done = hydrate(guest, place, want, "--submodules", *options)
        done.hydrated(via="mirror" if want else "snapshot")
        # The node may have had to fetch some of it for the first one.
        assert number == 0 or world.asked == before
        assert "LFS pointers" not in done.err
        # A private one is not for a guest without its token, and outside of a part it is not missed.
        assert ("submodule more/hidden is left empty: " in done.err) == (not options), done.err
        assert_whole(guest, place, files)


@pytest.mark.parametrize(("shell", "want"), list(zip(EVERY_SHELL, ("", "v1") * 2, strict=True)))
def test_pointers_are_filled_by_git_lfs(world: World, tmp_path: Path, shell: str, want: str) -> None:
    """From the mirror, in the workspace and in each submodule, whichever way they came."""
    needs_git_lfs()
    guest = world.nodes["pointers"].guest(tmp_path / "home", shell=shell)
    pointers = {name: pointer_of(data) for name, data in FILES.items()}
    place = guest.home / "ws"
    hydrate(guest, place, want, "--submodules").hydrated(via="mirror" if want else "snapshot")
    assert_whole(guest, place, pointers)
    for inner in ("", "libs/lib", "libs/lib/deps/deep"):
        guest.git("lfs", "install", "--local", "--skip-repo", cwd=place / inner)
        guest.git("lfs", "pull", cwd=place / inner)
    assert_whole(guest, place, FILES)


@pytest.mark.parametrize("kind", ["content", "pointers"])
def test_turns_of_whole_workspaces(world: World, tmp_path: Path, kind: str) -> None:
    """A turn has what was changed and no more, and a session comes back whole."""
    needs_git_lfs()
    node = world.nodes[kind]
    guest = node.guest(tmp_path / "home")
    place = guest.home / "ws"
    hydrate(guest, place, "", "--submodules").hydrated(via="snapshot")
    session = f"whole-{kind}"
    assert guest.record(session, place).out == "recorded nothing\n"
    (place / "libs/lib/new.txt").write_text("mine\n")
    turn = guest.record(session, place).recorded(session)
    assert git("diff", "--name-only", "main", turn, cwd=node.serve.mirror(WIDGETS)) == "libs/lib"
    again = guest.home / "again"
    assert hydrate(guest, again, f"session:{session}", "--submodules").hydrated(via="snapshot") == turn
    assert (again / "libs/lib/new.txt").read_text() == "mine\n"
    files = FILES if kind == "content" else {name: pointer_of(data) for name, data in FILES.items()}
    assert_whole(guest, again, files)


def test_repositories_on_demand_are_whole(world: World, tmp_path: Path) -> None:
    """The first guest waits for the clone; the node gets the submodules by itself, and those who ask later have all."""
    needs_git_lfs()
    serve = world.allowing
    home = tmp_path / "home"
    home.mkdir()
    kit = home / "guest.sh"
    kit.write_text(serve.here("guest-kit"))
    guest = Guest(home, kit, env={"GITMIRROR_DRIVES": "", "GITMIRROR_DEADLINE": "60"})
    first = hydrate(guest, home / "first")
    assert first.code == 0, first.err
    assert (home / "first/one.bin").read_bytes() == ONE
    for name in (LIB, DEEP):
        serve.wait_for_repo(name)
    places = iter(home / f"ws{number}" for number in range(1000))

    def whole() -> Path | None:
        place = next(places)
        hydrate(guest, place).hydrated(via="snapshot")
        return place if len(list(place.rglob("*.bin"))) == len(FILES) else None

    assert_whole(guest, wait_until(whole, message="a workspace with all submodules"), FILES)
