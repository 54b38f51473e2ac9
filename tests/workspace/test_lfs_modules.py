"""LFS files in place in submodules: each object comes from the submodule's own repository."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.access.conftest import SECRET
from tests.conftest import WIDGETS
from tests.lfs.node import DATA, HIDDEN, lfs_node
from tests.support.gitutil import git
from tests.workspace.conftest import Node
from tests.workspace.lfs_room import assert_clean
from tests.workspace.web import get, unpack


@pytest.mark.slow
def test_submodules_have_their_content(tmp_path: Path) -> None:
    """A private one only for those who may read it; git sees no change in any of them."""
    with lfs_node(tmp_path, workspace={"lfs": "content", "submodules": True}) as lfs:
        upstream = lfs.upstream
        work = tmp_path / "scratch"
        git("clone", "--quiet", str(upstream.path(WIDGETS)), str(work))
        secret = git("rev-parse", "main", cwd=upstream.path(SECRET))
        modules = f'[submodule "hidden"]\n\tpath = libs/hidden\n\turl = {lfs.lfs.url(SECRET)}\n'
        (work / ".gitmodules").write_text(modules)
        git("add", ".gitmodules", cwd=work)
        git("update-index", "--add", "--cacheinfo", f"160000,{secret},libs/hidden", cwd=work)
        git("commit", "--quiet", "-m", "a submodule", cwd=work)
        git("push", "--quiet", "origin", "HEAD:main", cwd=work)
        node = Node(lfs.serve, upstream)
        node.refresh()
        node.wait_for_snapshot()
        plain = unpack(get(node.tar_url()), tmp_path / "plain")
        assert (plain / "one.bin").read_bytes() == DATA["one.bin"]
        assert not (plain / "libs" / "hidden" / "hidden.bin").exists()
        token = lfs.token(SECRET)
        url = f"{node.tar_url()}?submodules=1"
        whole = unpack(get(url, authorization=f"Bearer {token}"), tmp_path / "whole")
        assert (whole / "libs" / "hidden" / "hidden.bin").read_bytes() == HIDDEN
        assert_clean(whole)
        assert_clean(whole / "libs" / "hidden")
        assert git("submodule", "status", cwd=whole).startswith(secret)
