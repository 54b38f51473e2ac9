"""Damage to a mirror is found while it is served, shown to the operator, and healed without one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import WIDGETS
from tests.integrity.nodes import OTHER, DamagedNode, damaged_node
from tests.recording.conftest import AGENTS
from tests.support.generate import add_commit
from tests.support.gitutil import fsck, git, git_result, refs


@pytest.fixture
def node(tmp_path: Path) -> Iterator[DamagedNode]:
    """A running node whose mirrors have loose objects."""
    with damaged_node(tmp_path) as found:
        yield found


def blob_of(node: DamagedNode) -> str:
    """A blob of the tip of `main`."""
    return git("ls-tree", "-r", "main", cwd=node.mirror).split()[2]


def test_a_ref_that_vanished_is_found_after_a_refresh_and_put_back(node: DamagedNode) -> None:
    """The session's ref, lost without a word: the database knows its commit."""
    before = refs(node.mirror)
    node.lose_ref(f"{AGENTS}fix-dns")
    add_commit(node.upstream.path(WIDGETS), "main", {"more.txt": "more\n"})
    node.refresh()
    node.wait_for_word("the mirror is damaged")
    node.wait_for_word("the mirror is healed")
    after = refs(node.mirror)
    assert {ref: after.get(ref) for ref in before if ref.startswith(AGENTS)} == {f"{AGENTS}fix-dns": node.turns[1]}
    entry = node.serve.wait_for_repo(WIDGETS, "fresh")
    assert entry["damage"] is None
    assert node.status(OTHER)["state"] == "fresh"


def test_a_fetch_that_fails_makes_the_mirror_suspect(node: DamagedNode, tmp_path: Path) -> None:
    """A lost blob, and an upstream that is down: `damaged` until it is back, then whole. Others are not touched."""
    blob = blob_of(node)
    node.upstream.refuse()
    node.lose(blob)
    url = f"{node.serve.git_url}/{WIDGETS}"
    # A shape that no response was prepared for, so that git has to make it.
    assert git_result("clone", "-q", "--depth=3", url, str(tmp_path / "clone"))[0] != 0
    node.wait_for_word("git speaks of damage")
    entry = node.serve.wait_for_repo(WIDGETS, "damaged")
    assert entry["damage"]
    assert "heal REPO" in entry["hint"] and "purge" not in entry["hint"]
    shown = node.serve.cli("status", check=False)
    assert shown.returncode == 3
    assert "its mirror is damaged" in shown.stdout and "what to do" in shown.stdout
    assert node.serve.clone(tmp_path / "other", OTHER).exists()

    node.upstream.restore()
    healed = node.serve.cli_json("heal", WIDGETS)
    assert healed["whole"], healed
    assert node.status()["damage"] is None
    git("clone", "-q", "--depth=3", url, str(tmp_path / "again"))
    fsck(node.mirror)
