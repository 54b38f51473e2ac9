"""Who moved a ref, by its log: what git writes is read, and what the log cannot tell is not guessed."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.core.git.reflog import Move, read_moves, was_moved
from tests.support.gitutil import clean_env, git

A, B, C, NONE = (letter * 40 for letter in "abc0")
REF = "refs/agents/s"


def write_log(repository: Path, text: str) -> None:
    """Put a log beside a ref."""
    path = repository / "logs" / REF
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def line(old: str, new: str, by: str) -> str:
    """A line as git writes it."""
    return f"{old} {new} gitmirror <{by}> 1700000000 +0000\tpush\n"


def test_what_git_writes_is_read(tmp_path: Path) -> None:
    """The values and the mail address, in order; a ref without a log has no moves."""
    git("init", "--quiet", "--bare", ".", cwd=tmp_path)
    tree = git("mktree", cwd=tmp_path, input="")
    first = git("commit-tree", "-m", "first", tree, cwd=tmp_path)
    second = git("commit-tree", "-m", "second", tree, cwd=tmp_path)
    for commit, push in ((first, "push-1"), (second, "push-2")):
        git("-c", "core.logAllRefUpdates=always", "-c", f"user.email={push}", "update-ref", REF, commit, cwd=tmp_path,
            env=_without_committer(tmp_path))  # fmt: skip
    assert read_moves(tmp_path, REF) == (Move(NONE, first, "push-1"), Move(first, second, "push-2"))
    assert read_moves(tmp_path, "refs/agents/other") == ()
    assert read_moves(tmp_path, "refs/agents") == ()


def _without_committer(home: Path) -> dict[str, str]:
    """For the mail address of the config to be used."""
    return {key: value for key, value in clean_env(home).items() if not key.startswith("GIT_COMMITTER")}


def test_a_line_that_was_cut_short_costs_only_itself(tmp_path: Path) -> None:
    """Wherever a full disk cut it: what is appended to it later is read, and so is what was before."""
    before, cut, after = line(NONE, A, "18aa-b1"), line(A, B, "18aa-b2"), line(A, C, "18aa-b3")
    for length in range(len(cut) - len("1700000000 +0000\tpush\n")):
        write_log(tmp_path, before + cut[:length] + after)
        assert read_moves(tmp_path, REF) == (Move(NONE, A, "18aa-b1"), Move(A, C, "18aa-b3")), length


@pytest.mark.parametrize(
    ("moves", "current", "moved"),
    [
        ([(NONE, A, "us")], A, True),
        ([(NONE, A, "us")], None, False),
        ([(NONE, A, "us"), (A, B, "other")], B, True),
        ([(NONE, A, "us"), (A, B, "other")], A, True),
        ([(NONE, A, "us"), (NONE, A, "other")], A, False),
        ([(NONE, A, "us"), (NONE, B, "other")], B, False),
        ([(NONE, A, "other")], A, False),
        ([(NONE, A, "other"), (A, B, "another")], B, False),
        ([(NONE, A, "other")], B, None),
        ([], A, None),
        ([], None, None),
    ],
)
def test_who_came_next_tells(moves: list[tuple[str, str, str]], current: str | None, moved: bool | None) -> None:
    """The next line found our value, or it did not; the last one is measured by the ref."""
    assert was_moved([Move(*move) for move in moves], "us", A, current) is moved
