"""Submodules of a private repository, for a guest with its token: it gets the open ones by git, and no private one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.access.conftest import OTHER, SECRET, Node, tip
from tests.access.test_kit import guest_of
from tests.conftest import WIDGETS
from tests.support.gitutil import git
from tests.workspace.conftest import NOTHING
from tests.workspace.module_lab import link, section

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("tools", [None, NOTHING], ids=["curl", "git"])
def test_a_token_is_good_for_its_own_repository(node: Node, tmp_path: Path, tools: tuple[str, ...] | None) -> None:
    """The open submodule is there, the private one is empty and named, and no file or message has the token."""
    bare = node.upstream.path(SECRET)
    text = section("open", "open", node.upstream.url(WIDGETS)) + section("other", "other", node.upstream.url(OTHER))
    git("branch", "--force", "modules", "main", cwd=bare)
    link(bare, text, {"open": tip(node.upstream, WIDGETS), "other": tip(node.upstream, OTHER)}, "modules")
    node.serve.here("refresh", SECRET)
    token = str(node.issue()["token"])
    guest = guest_of(node, tmp_path / "home", token, tools=tools)
    place = tmp_path / "work"
    done = guest.run(f"gitmirror_hydrate --submodules {SECRET} '{place}' modules")
    assert done.code == 0, done.err
    if tools is not None:
        # git-submodule is a script that needs more than git, and the guest has no more.
        assert "is left empty" in done.err
        return
    assert (place / "open/.git").exists(), done.err
    assert git("rev-parse", "HEAD", cwd=place / "open") == tip(node.upstream, WIDGETS)
    assert list((place / "other").iterdir()) == []
    assert "submodule other is left empty: the mirror does not have " in done.err
    assert token not in done.out + done.err
    for path in place.rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert token.encode() not in path.read_bytes(), path
