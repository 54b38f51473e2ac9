"""`gitmirror_hydrate --submodules`, by each of its ways."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import WIDGETS
from tests.support.generate import add_commit
from tests.support.gitutil import git, refs
from tests.support.serve import Serve
from tests.support.upstream import HttpUpstream
from tests.workspace.conftest import EVERY_SHELL, SETTLED, Guest, Node
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


@pytest.mark.parametrize("shell", EVERY_SHELL)
@pytest.mark.parametrize("way", ["snapshot", "mirror"])
@pytest.mark.parametrize("shape", ["", "--tip", "--history"])
def test_what_is_mirrored_is_there(family: Node, tmp_path: Path, shell: str, way: str, shape: str) -> None:
    """To any depth, at the recorded commit, with the real URLs; what is not mirrored is empty, and named."""
    guest = family.guest(tmp_path / "home", shell=shell)
    if way == "mirror":
        guest = by_git(family, guest)
    place = guest.home / "ws"
    before = len(family.upstream.requests)
    done = hydrate(guest, place, "", "--submodules", *([shape] if shape else []))
    print(done.err)
    done.hydrated(via=way)
    whole(family, guest, place)
    assert "submodule far is left empty: " in done.err and family.upstream.url(FAR) in done.err
    assert done.err.count("submodule") == 1, done.err
    assert len(family.upstream.requests) == before
