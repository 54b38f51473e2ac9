"""Snapshots with the history of their branch: what is in them, what is not, and what the next tip costs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.core.git.command import GitError
from appliance.core.workspace.history import History
from tests.git.lab import Lab
from tests.support.generate import add_commit, copy_repository
from tests.support.gitutil import fsck, git
from tests.workspace.lab import Builder, tree_of


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """The room that runs git."""
    made = Lab(tmp_path / "state")
    yield made
    made.close()


@pytest.fixture(params=[History.FULL, History.TREES])
def widgets(request: pytest.FixtureRequest, lab: Lab, generated_bare: Path, tmp_path: Path) -> Builder:
    """Snapshots of a copy of the generated repository, in each shape that has history."""
    bare = copy_repository(generated_bare, tmp_path / "widgets.git")
    return Builder(lab, bare, tmp_path / "snapshots", request.param)


def objects_in(guest: Path) -> set[str]:
    """The ids of all objects that are really there."""
    return set(git("cat-file", "--batch-all-objects", "--batch-check=%(objectname)", cwd=guest).split())


def expected(builder: Builder, commit: str) -> set[str]:
    """What a workspace of the commit is to have, by git's own walk."""
    tags = git("tag", f"--merged={commit}", cwd=builder.bare).split()
    walk = ["rev-list", "--objects", "--no-object-names", commit, *tags]
    if builder.history is History.FULL:
        return set(git(*walk, cwd=builder.bare).split())
    tip = git("ls-tree", "-r", "--format=%(objectname)", commit, cwd=builder.bare).split()
    return {*git(*walk, "--filter=blob:none", cwd=builder.bare).split(), *tip}


def test_it_has_the_whole_history_and_the_tags_on_it(widgets: Builder, tmp_path: Path) -> None:
    """Commits, trees and tags; blobs all of them, or those of the tip; and git finds nothing to complain about."""
    git("tag", "light", "main~1", cwd=widgets.bare)
    git("tag", "-a", "-m", "one", "inner", "main~2", cwd=widgets.bare)
    git("tag", "-a", "-m", "two", "outer", "inner", cwd=widgets.bare)
    snapshot = widgets.build()
    guest = widgets.unpack(tmp_path / "guest")
    assert objects_in(guest) == expected(widgets, snapshot.commit)
    assert git("status", "--porcelain=v2", cwd=guest) == ""
    fsck(guest)
    assert git("rev-parse", "--is-shallow-repository", cwd=guest) == "false"
    assert git("log", "--format=%H", cwd=guest) == git("log", "--format=%H", "main", cwd=widgets.bare)
    for ref in ("light", "inner", "outer", "outer^{commit}"):
        assert git("rev-parse", ref, cwd=guest) == git("rev-parse", ref, cwd=widgets.bare)
    assert git("describe", "--tags", cwd=guest) == git("describe", "--tags", "main", cwd=widgets.bare)


@pytest.mark.slow
def test_each_tip_adds_to_the_packs(widgets: Builder, tmp_path: Path) -> None:
    """The first pack stays for many tips, and what is there afterwards is what git's walk says."""
    widgets.build()
    first = max((widgets.place().packs / "objects" / "pack").glob("*.pack"), key=lambda pack: pack.stat().st_size)
    for turn in range(25):
        add_commit(widgets.bare, "main", {"README.md": f"turn {turn}\n", f"new {turn % 3}.txt": f"{turn}"})
        snapshot = widgets.build()
    guest = widgets.unpack(tmp_path / "guest")
    assert objects_in(guest) >= expected(widgets, snapshot.commit)
    assert tree_of(guest)["README.md"][1] == b"turn 24\n"
    fsck(guest)
    packs = list((guest / ".git" / "objects" / "pack").glob("*.pack"))
    assert 2 < len(packs) < 30
    assert widgets.history is History.TREES or first.name in {pack.name for pack in packs}


def test_what_a_rewrite_dropped_is_in_no_later_tar(widgets: Builder, tmp_path: Path) -> None:
    """Neither the commits, nor what only they had, nor a tag that is gone."""
    add_commit(widgets.bare, "main", {"secret.txt": "a password\n"})
    git("tag", "-a", "-m", "with a secret", "gone", "main~1", cwd=widgets.bare)
    before = widgets.build().commit
    git("tag", "-d", "gone", cwd=widgets.bare)
    git("update-ref", "refs/heads/main", "main~2", cwd=widgets.bare)
    add_commit(widgets.bare, "main", {"README.md": "rewritten\n"})
    after = widgets.build().commit
    guest = widgets.unpack(tmp_path / "guest")
    there = objects_in(guest)
    assert there == expected(widgets, after)
    assert before not in there and git("hash-object", "--stdin", cwd=guest, input="a password\n") not in there
    fsck(guest)


def test_a_mirror_that_cannot_be_read_any_more_is_an_error_of_git(
    lab: Lab, generated_bare: Path, tmp_path: Path
) -> None:
    """It is lost while a snapshot is built: `cat-file` says of a tag that it is missing, and exits with 0."""
    builder = Builder(lab, copy_repository(generated_bare, tmp_path / "widgets.git"), tmp_path / "snapshots")
    builder.history = History.FULL
    git("tag", "-a", "-m", "one", "annotated", "main", cwd=builder.bare)
    tools, objects = tmp_path / "tools", builder.bare / "objects"
    tools.mkdir()
    script = f'case "$*" in *"cat-file --batch"*) mv "{objects}" "{objects}.away" ;; esac'
    (tools / "git").write_text(f'#!/bin/sh\n{script}\nexec "{shutil.which("git")}" "$@"\n')
    (tools / "git").chmod(0o755)
    lab.put_before_git(tools)
    with pytest.raises(GitError, match="cannot be read from the mirror"):
        builder.build()
