"""LFS files in place of private repositories, of those with a .lfsconfig, over restarts, and in recorded turns."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.access.conftest import SECRET
from tests.conftest import WIDGETS
from tests.lfs.node import DATA, ELSEWHERE, HIDDEN, LfsNode, lfs_node
from tests.support.generate import add_commit
from tests.support.gitutil import clean_env, git, wait_until
from tests.support.lfs_server import pointer_of
from tests.workspace.conftest import Node
from tests.workspace.lfs_room import assert_clean
from tests.workspace.web import Reply, get, unpack

pytestmark = pytest.mark.slow
LATE = b"this one comes later\n"


@pytest.fixture(scope="module")
def lfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LfsNode]:
    """A node whose workspaces have content."""
    with lfs_node(tmp_path_factory.mktemp("lfs"), workspace={"lfs": "content"}) as made:
        yield made


def tar(lfs: LfsNode, name: str, token: str = "") -> Reply:
    """The tar of a repository."""
    return get(f"{lfs.serve.http_url}/{name}/workspace.tar", authorization=f"Bearer {token}")


def test_content_of_a_private_repository_is_for_those_who_may_read_it(lfs: LfsNode, tmp_path: Path) -> None:
    """It is fetched with the node's credential; without a token there is no such repository."""
    token = lfs.token(SECRET)
    guest = unpack(tar(lfs, SECRET, token), tmp_path / "guest")
    assert (guest / "hidden.bin").read_bytes() == HIDDEN
    assert_clean(guest)
    assert tar(lfs, SECRET).status == 404


def test_content_comes_from_where_lfsconfig_says(lfs: LfsNode, tmp_path: Path) -> None:
    """As for git-lfs."""
    guest = unpack(tar(lfs, ELSEWHERE), tmp_path / "guest")
    assert (guest / "there.bin").read_bytes() == HIDDEN
    assert_clean(guest)


def test_turns_have_pointers_of_files_that_nobody_changed(lfs: LfsNode, tmp_path: Path) -> None:
    """With git-lfs in the guest, and without; a changed one has its contents in the turn."""
    node = Node(lfs.serve, lfs.upstream)
    node.wait_for_snapshot()
    for name, env in (("some", lfs.guest("some")), ("none", clean_env(tmp_path))):
        guest = node.guest(tmp_path / name, tools=None, GIT_CONFIG_GLOBAL=env["GIT_CONFIG_GLOBAL"])
        workspace = guest.home / "ws"
        guest.hydrate(workspace).hydrated(via="snapshot")
        assert (workspace / "one.bin").read_bytes() == DATA["one.bin"]
        (workspace / "one.bin").write_bytes(b"changed")
        (workspace / "new.txt").write_text("new\n")
        commit = guest.record(f"turn-{name}", workspace).recorded(f"turn-{name}")
        bare = lfs.serve.mirror(WIDGETS)
        changed = git("diff-tree", "-r", "--name-only", node.tip, commit, cwd=bare).split()
        assert changed == ["new.txt", "one.bin"]
        assert git("cat-file", "blob", f"{commit}:one.bin", cwd=bare) == "changed"


def test_what_was_missing_is_in_place_after_a_restart(lfs: LfsNode, tmp_path: Path) -> None:
    """The tar with the pointer is served until then; a kill in between changes nothing."""
    node = Node(lfs.serve, lfs.upstream)
    tip = add_commit(lfs.upstream.path(WIDGETS), "main", {"late.bin": pointer_of(LATE)})
    node.refresh()
    node.wait_for_snapshot(tip)
    before = unpack(tar(lfs, WIDGETS), tmp_path / "before")
    assert (before / "late.bin").read_bytes() == pointer_of(LATE)
    assert_clean(before)
    lfs.serve.kill()
    lfs.lfs.add(WIDGETS, LATE)
    lfs.serve.start()

    def has_come() -> bool:
        reply = tar(lfs, WIDGETS)
        if reply.status != 200:
            return False
        with reply.tar() as whole:
            return whole.getmember("late.bin").size == len(LATE)

    wait_until(has_come, message="the late object")
    assert_clean(unpack(tar(lfs, WIDGETS), tmp_path / "after"))
