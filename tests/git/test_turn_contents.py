"""What a turn changed and said, as git tells it, within bounds, whatever names and messages a guest wrote."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.core.git.command import GitError
from appliance.core.git.mirror import Mirror
from appliance.core.git.turn_contents import (
    MOST_PATH_BYTES,
    MOST_TEXT,
    ChangedPaths,
    changed_paths,
    messages_of,
    present_commits,
)
from tests.git.lab import Lab
from tests.support.gitutil import commit_files, git, git_bytes

NOBODY = "1" * 40


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """Runs git."""
    made = Lab(tmp_path / "state")
    yield made
    made.close()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A repository with a worktree and one commit."""
    path = tmp_path / "tree"
    git("init", "--quiet", str(path))
    commit_files(path, {"kept.txt": "kept", "moved.txt": "a\nb\nc\n", "gone.txt": "gone"}, "the base")
    return path


def test_every_path_that_differs_is_named(lab: Lab, tree: Path) -> None:
    """As bytes, of a renamed file both names, from the top, in git's order, which is that of bytes."""
    base = git("rev-parse", "HEAD", cwd=tree)
    git("mv", "moved.txt", "here.txt", cwd=tree)
    (tree / "a-b").mkdir()
    (tree / "a").mkdir()
    names = ["a/z", "a-b/x", "caf\udce9", 'sp ace\n"']
    new = commit_files(tree, {"gone.txt": None} | dict.fromkeys(names, "new"), "new names")
    found = lab.run(changed_paths(Mirror(tree / ".git", lab.git), base, new))
    assert found.all_of_them and found.paths == sorted(found.paths)
    assert set(found.paths) == {
        b"a/z", b"a-b/x", b"caf\xe9", b'sp ace\n"', b"gone.txt", b"moved.txt", b"here.txt"
    }  # fmt: skip
    assert lab.run(changed_paths(Mirror(tree / ".git", lab.git), new, new)) == ChangedPaths([], True)


def test_without_a_base_everything_is_new(lab: Lab, tree: Path) -> None:
    """A history that is unrelated to the upstream's."""
    found = lab.run(changed_paths(Mirror(tree / ".git", lab.git), None, "HEAD"))
    assert found == ChangedPaths([b"gone.txt", b"kept.txt", b"moved.txt"], True)


@pytest.mark.parametrize("length", [10, 400], ids=["by number", "by bytes"])
def test_more_paths_than_the_bound_are_cut_and_said_to_be(lab: Lab, tmp_path: Path, length: int) -> None:
    """The first ones stay, whole, and memory does not grow with what a guest pushes."""
    path = tmp_path / "many"
    git("init", "--quiet", "--bare", str(path))
    blob = git("hash-object", "-w", "--stdin", cwd=path, input="x")
    names = [f"{number:06}-{'n' * length}" for number in range(25_000)]
    listing = "".join(f"100644 blob {blob}\t{name}\n" for name in names)
    commit = git("commit-tree", "-m", "many", git("mktree", cwd=path, input=listing), cwd=path)
    found = lab.run(changed_paths(Mirror(path, lab.git), None, commit))
    assert not found.all_of_them
    assert [name.decode() for name in found.paths] == names[: len(found.paths)]
    if length == 10:
        assert len(found.paths) == 20_000
        assert lab.run(changed_paths(Mirror(path, lab.git), None, commit, 25_000)).all_of_them
    else:
        assert MOST_PATH_BYTES - 70_000 < sum(len(name) + 1 for name in found.paths) <= MOST_PATH_BYTES
    assert lab.run(changed_paths(Mirror(path, lab.git), None, commit, 0)) == ChangedPaths([], False)


def test_messages_are_those_of_the_commits_in_between(lab: Lab, tree: Path) -> None:
    """Whole, newest first, also those of a side that was merged; none of the base."""
    base = git("rev-parse", "HEAD", cwd=tree)
    git("checkout", "--quiet", "-b", "side", cwd=tree)
    commit_files(tree, {"side.txt": "1"}, "on the side\n\nits body")
    git("checkout", "--quiet", "-", cwd=tree)
    first = commit_files(tree, {"main.txt": "1"}, "the first")
    git("merge", "--quiet", "-m", "both", "side", cwd=tree)
    mirror = Mirror(tree / ".git", lab.git)
    said = lab.run(messages_of(mirror, "HEAD", base))
    assert said.startswith("both\n")
    assert {"both", "on the side", "its body", "the first"} == {line for line in said.splitlines() if line}
    assert "the first" not in lab.run(messages_of(mirror, "HEAD", base, first))
    assert "the base" in lab.run(messages_of(mirror, "HEAD"))
    assert lab.run(messages_of(mirror, base, base)) == ""


def test_a_message_in_another_encoding_is_read(lab: Lab, tree: Path) -> None:
    """The commit says in which; and bytes that are none in any are replaced."""
    message = tree / "message"
    message.write_bytes(b"caf\xe9\n")
    git("-c", "i18n.commitEncoding=latin1", "commit", "--quiet", "--allow-empty", "-F", str(message), cwd=tree)
    _, raw, _ = git_bytes("cat-file", "commit", "HEAD~1", cwd=tree)
    raw = raw.replace(b"the base", b"bad \xff byte")
    bad = git("hash-object", "-t", "commit", "-w", "--stdin", cwd=tree, input=raw)
    mirror = Mirror(tree / ".git", lab.git)
    assert lab.run(messages_of(mirror, "HEAD", "HEAD~1")).strip() == "café"
    assert lab.run(messages_of(mirror, bad)).strip() == "bad \N{REPLACEMENT CHARACTER} byte"


def test_long_messages_are_cut(lab: Lab, tree: Path) -> None:
    """One of megabytes, and many commits together; the newest are kept."""
    message = tree / "message"
    message.write_text("begins " + 300_000 * "long " + "ends")
    git("commit", "--quiet", "--allow-empty", "-F", str(message), cwd=tree)
    mirror = Mirror(tree / ".git", lab.git)
    said = lab.run(messages_of(mirror, "HEAD"))
    assert said.startswith("begins ") and len(said) == MOST_TEXT and "ends" not in said
    for number in range(6):
        message.write_text(f"commit {number} " + 900 * "word ")
        git("commit", "--quiet", "--allow-empty", "-F", str(message), cwd=tree)
    said = lab.run(messages_of(mirror, "HEAD"))
    assert [f"commit {number}" in said for number in range(6)] == [False, False, True, True, True, True]


def test_what_is_not_there_is_told_from_an_error(lab: Lab, tree: Path, tmp_path: Path) -> None:
    """A commit that the mirror lacks; an object that is no commit; no mirror at all."""
    commit, blob = git("rev-parse", "HEAD", cwd=tree), git("rev-parse", "HEAD:kept.txt", cwd=tree)
    mirror = Mirror(tree / ".git", lab.git)
    assert lab.run(present_commits(mirror, commit, NOBODY, blob)) == {commit}
    with pytest.raises(GitError):
        lab.run(changed_paths(mirror, NOBODY, commit))
    with pytest.raises(GitError):
        lab.run(messages_of(mirror, NOBODY))
    with pytest.raises(GitError):
        lab.run(present_commits(Mirror(tmp_path / "nowhere", lab.git), commit))
