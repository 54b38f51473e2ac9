"""Refs read from files are the same as those that git reports."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.core.git.stored_refs import stored_refs
from tests.support.gitutil import git, refs

BELOW = "refs/gitmirror/turns/"


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A bare repository with turns, packed and loose, and other refs before and after them."""
    bare = tmp_path / "bare.git"
    git("init", "--quiet", "--bare", str(bare))
    tree = git("mktree", cwd=bare, input="")
    commits = [git("commit-tree", "-m", f"{number}", tree, cwd=bare) for number in range(3)]
    for ref in (
        f"{BELOW}1",
        f"{BELOW}2",
        "refs/gitmirror/tips/x",
        "refs/heads/main",
        "refs/zoo/x",
        "refs/gitmirror/tu/1",
    ):
        git("update-ref", ref, commits[0], cwd=bare)
    git("tag", "-a", "-m", "x", "v1", commits[0], cwd=bare)
    git("pack-refs", "--all", cwd=bare)
    git("update-ref", f"{BELOW}2", commits[1], cwd=bare)
    git("update-ref", f"{BELOW}3", commits[2], cwd=bare)
    return bare


def test_they_are_what_git_tells(bare: Path) -> None:
    """A loose ref before the packed one of its name; nothing of others."""
    expected = {ref: oid for ref, oid in refs(bare).items() if ref.startswith(BELOW)}
    assert len(expected) == 3
    assert stored_refs(bare, BELOW) == expected
    git("pack-refs", "--all", cwd=bare)
    assert stored_refs(bare, BELOW) == expected
    assert stored_refs(bare, "refs/none/") == {}


def test_a_file_that_makes_no_sense_is_left_out(bare: Path) -> None:
    """An empty file after a power cut, a lock file and a directory are skipped; all other refs are returned."""
    place = bare / BELOW
    (place / "3").write_bytes(b"")
    (place / "4.lock").touch()
    (place / "5").write_bytes(b"\xff" * 40)
    (place / "6").mkdir()
    assert set(stored_refs(bare, BELOW)) == {f"{BELOW}1", f"{BELOW}2"}


def test_where_there_is_no_repository_there_are_no_refs(tmp_path: Path) -> None:
    """An empty directory, and none."""
    assert stored_refs(tmp_path, BELOW) == stored_refs(tmp_path / "none", BELOW) == {}
