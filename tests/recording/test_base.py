"""The base of a session: the upstream's commit it started from, whatever agents and upstreams do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import WIDGETS
from tests.recording.conftest import new_session, record, record_turn, session_of
from tests.serving.conftest import Node, commit_turn
from tests.support.generate import add_commit, force_push
from tests.support.gitutil import commit_files, git

Facts = tuple[Any, ...]


def facts(node: Node, name: str) -> Facts:
    """Base, commits, files, insertions and deletions of a session."""
    row = session_of(node, name)
    assert row is not None, f"{name} is not in the book"
    return tuple(row[key] for key in ("base", "commits", "files_changed", "insertions", "deletions"))


def test_a_shallow_guest_that_commits_once(node: Node, tmp_path: Path) -> None:
    """The guest knows one commit; the mirror knows them all."""
    for number, options in enumerate((("--depth=1",), ("--depth=1", "--filter=blob:none"), ("--filter=blob:none",))):
        name, guest = new_session(), node.guest(tmp_path / f"guest-{number}", *options)
        record_turn(guest, name, f"a line {number}")
        assert facts(node, name) == (node.tip, 1, 1, 1, 0)


def test_an_agent_that_commits_several_times(node: Node, tmp_path: Path) -> None:
    """The base is the commit it started from, not the one before its last; the numbers cover all its commits."""
    name, guest = new_session(), node.guest(tmp_path / "guest")
    for number in range(3):
        commit_files(guest, {f"new-{number}.txt": "1\n2\n"}, f"commit {number}")
    record(guest, name)
    assert facts(node, name) == (node.tip, 3, 3, 6, 0)


def test_a_session_that_changed_nothing(node: Node, tmp_path: Path) -> None:
    """A recording of the upstream's own commit starts and ends there."""
    name, guest = new_session(), node.guest(tmp_path / "guest")
    record(guest, name)
    assert facts(node, name) == (node.tip, 0, 0, 0, 0)


@pytest.mark.slow
def test_a_branch_a_tag_and_an_old_commit(make_node: Callable[..., Node], tmp_path: Path) -> None:
    """A session recorded from another branch, from a commit that only a tag has, or from far back has that as base."""
    node = make_node()
    upstream = node.upstream.path(WIDGETS)
    git("update-ref", "refs/heads/topic", "refs/heads/main~5", cwd=upstream)
    starts = [add_commit(upstream, "topic", {"topic.txt": "t"}), add_commit(upstream, "passing", {"p.txt": "p"})]
    git("tag", "only-tagged", "passing", cwd=upstream)
    git("update-ref", "-d", "refs/heads/passing", cwd=upstream)
    starts.append(git("rev-parse", "main~20", cwd=upstream))
    node.serve.cli("refresh", WIDGETS)
    guest = node.guest(tmp_path / "guest", "--no-single-branch")
    for start in starts:
        name = new_session()
        git("fetch", "--quiet", "--depth=1", "origin", start, cwd=guest)
        git("checkout", "--quiet", start, cwd=guest)
        record_turn(guest, name, f"from {start}")
        assert facts(node, name) == (start, 1, 1, 1, 0)


@pytest.mark.slow
def test_an_agent_that_merges_its_upstream(make_node: Callable[..., Node], tmp_path: Path) -> None:
    """After a merge the base is the newest upstream commit in it: the diff is what the agent did, not the upstream."""
    node = make_node()
    name, guest = new_session(), node.guest(tmp_path / "guest", "--filter=blob:none")
    commit_turn(guest, "before the merge")
    for number in range(3):
        moved = add_commit(node.upstream.path(WIDGETS), "main", {f"upstream-{number}.txt": "u\n" * 9})
    node.serve.cli("refresh", WIDGETS)
    git("fetch", "--quiet", "origin", cwd=guest)
    git("merge", "--quiet", "--no-edit", "origin/main", cwd=guest)
    record(guest, name)
    assert facts(node, name) == (moved, 2, 1, 1, 0)


@pytest.mark.slow
def test_an_upstream_that_rewrites_its_history(make_node: Callable[..., Node], tmp_path: Path) -> None:
    """A guest that started before the forced push has the old tip as base: the mirror's anchor kept it."""
    node = make_node()
    name, guest = new_session(), node.guest(tmp_path / "guest")
    old = git("rev-parse", "HEAD", cwd=guest)
    force_push(node.upstream.path(WIDGETS), "main", depth=3)
    node.serve.cli("refresh", WIDGETS)
    assert node.tip != old
    record_turn(guest, name, "on the old tip")
    assert facts(node, name) == (old, 1, 1, 1, 0)


@pytest.mark.slow
def test_unrelated_history_is_said(node: Node, tmp_path: Path) -> None:
    """No base is guessed: the listing has none, every command says so, and the diff is all of it."""
    name, guest = new_session(), node.guest(tmp_path / "guest")
    git("checkout", "--quiet", "--orphan", "other", cwd=guest)
    git("rm", "-rfq", ".", cwd=guest)
    commit_files(guest, {"a.txt": "1\n"}, "first")
    commit_files(guest, {"b.txt": "2\n"}, "second")
    record(guest, name)
    assert facts(node, name) == (None, 2, 2, 2, 0)
    said = "its history is unrelated to the upstream's"
    assert said in node.serve.cli("session", "show", WIDGETS, name).stdout
    diff = node.serve.cli("session", "diff", WIDGETS, name, "--name-only")
    assert diff.stdout.split() == ["a.txt", "b.txt"] and said in diff.stderr
    log = node.serve.cli("session", "log", WIDGETS, name)
    assert len(log.stdout.splitlines()) == 2 and said in log.stderr


@pytest.mark.slow
def test_a_hostile_subject_cannot_forge_the_facts(node: Node, tmp_path: Path) -> None:
    """Line ends of all kinds, escapes and a subject of megabytes change neither base nor numbers, and are cut."""
    forged = f"- {'1' * 40} 99999999999 x"
    for subject in (f"a\u2028{forged}", f"a\x0c{forged}", f"a\r{forged}", f"\x1b[31m{forged}", "x" * 3_000_000):
        name, guest = (
            new_session(),
            node.guest(tmp_path / new_session(), "--depth=1", "--filter=tree:0", "--no-checkout"),
        )
        message = tmp_path / "message"
        message.write_text(subject)
        git("commit", "--quiet", "--allow-empty", "--only", "--file", str(message), cwd=guest)
        record(guest, name)
        assert facts(node, name) == (node.tip, 1, 0, 0, 0)
