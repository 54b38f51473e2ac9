"""The guard: only `refs/agents/SESSION` may be written, and a refused guest reads why."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.conftest import WIDGETS
from tests.serving.conftest import (
    Node,
    assert_log_is_true,
    audit,
    commit_turn,
    entry_of,
    own_refs,
    push,
    send_raw,
)
from tests.support.gitutil import clean_env, git, git_result, refs, remote_refs
from tests.support.pkt import CAPABILITIES, EMPTY_PACK, FLUSH, ZERO, PushConnection, pkt

ALLOWED = "gitmirror: allowed here: git push MIRROR HEAD:refs/agents/SESSION (SESSION is 1 to 128 of"
BRANCHES = "branches and tags are the upstream's: push them there"
OTHERS = "only refs/agents/SESSION may be written"


# What is allowed


def test_a_guest_records_its_work_with_no_credential(own_node: Node, tmp_path: Path) -> None:
    """A shallow guest without blobs clones, commits and pushes, turn after turn, rewriting one too."""
    node = own_node
    guest = node.guest(tmp_path / "guest")
    env = clean_env(tmp_path / "nobody", GIT_ASKPASS="false")
    turns = [commit_turn(guest, "turn 1"), commit_turn(guest, "turn 2")]
    for _ in range(2):
        git("push", "--quiet", "origin", "HEAD~1:refs/agents/s1", cwd=guest, env=env)
        git("push", "--quiet", "origin", "HEAD:refs/agents/s1", cwd=guest, env=env)
        git("push", "--quiet", "origin", "HEAD:refs/agents/s1", cwd=guest, env=env)
        git("push", "--quiet", "--force", "origin", "HEAD~1:refs/agents/s1", cwd=guest, env=env)
    git("commit", "--quiet", "--amend", "-m", "turn 2, again", cwd=guest)
    rewritten = git("rev-parse", "HEAD", cwd=guest)
    git("push", "--quiet", "--force", "origin", "HEAD:refs/agents/s1", cwd=guest, env=env)
    assert remote_refs(node.url)["refs/agents/s1"] == rewritten
    entries = assert_log_is_true(node)
    assert [entry["new"] for entry in reversed(entries)][:3] == [turns[0], turns[1], turns[0]]
    assert {entry["outcome"] for entry in entries} == {"applied"}
    assert {entry["session"] for entry in entries} == {"s1"}


def test_an_agents_work_is_fetched_by_another(node: Node, tmp_path: Path) -> None:
    """What was recorded is there for others: by its ref and by its id."""
    guest, other = node.guest(tmp_path / "guest"), node.guest(tmp_path / "other")
    commit = commit_turn(guest, "for others")
    git("push", "--quiet", "origin", "HEAD:refs/agents/kept-for-others", cwd=guest)
    git("fetch", "--quiet", "--depth=1", "origin", commit, cwd=other)
    git("fetch", "--quiet", "--depth=1", "origin", "refs/agents/kept-for-others", cwd=other)
    assert git("show", "FETCH_HEAD:turn.txt", cwd=other) == "for others"


@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize("session", ["kept-a", "kept-A.b_c-d", "kept-" + "x" * 123, "kept-lock", "kept-HEAD", "kept-9"])
def test_names_of_sessions_that_are_allowed(node: Node, tmp_path: Path, session: str, version: int) -> None:
    """Letters, digits, dot, underscore and dash, up to 128 of them, in every protocol version."""
    guest = node.guest(tmp_path / "guest", "--depth=1", "--no-checkout")
    git("-c", f"protocol.version={version}", "push", "--quiet", "origin", f"HEAD:refs/agents/{session}", cwd=guest)
    assert git("rev-parse", f"refs/agents/{session}", cwd=node.mirror) == node.tip


def test_sixteen_refs_go_in_one_push(node: Node) -> None:
    """The most that one push may carry, all of them applied and each with a row of its own."""
    names = [f"refs/agents/kept-of16-{number}" for number in range(16)]
    answer = push(node.serve, *((ZERO, node.tip, name) for name in names))
    assert answer.accepted, answer
    rows = [entry for entry in audit(node.serve) if entry["ref"] in names]
    assert [(row["verdict"], row["outcome"]) for row in rows] == [("accepted", "applied")] * 16


def test_a_guest_that_only_looks_is_no_attempt(node: Node, tmp_path: Path) -> None:
    """A push with nothing to say, a dry run and a look at the refs leave no row."""
    guest = node.guest(tmp_path / "guest")
    git("push", "--quiet", "origin", "HEAD:refs/agents/kept-looks", cwd=guest)
    before = len(audit(node.serve))
    git("push", "--quiet", "origin", "HEAD:refs/agents/kept-looks", cwd=guest)
    git("push", "--quiet", "--dry-run", "origin", "HEAD:refs/agents/kept-not-yet", cwd=guest)
    with PushConnection(*node.serve.git_address, f"/{WIDGETS}") as connection:
        assert connection.answer.refs["refs/agents/kept-looks"] == node.tip
        connection.send(FLUSH)
    assert len(audit(node.serve)) == before


# What is refused

REFUSED = {
    "a branch": ("refs/heads/main", BRANCHES),
    "a new branch": ("refs/heads/agent/work", BRANCHES),
    "a tag": ("refs/tags/x", BRANCHES),
    "another namespace": ("refs/agentsx/y", OTHERS),
    "the namespace": ("refs/agents", OTHERS),
    "no session": ("refs/agents/", OTHERS),
    "dots out of it": ("refs/agents/../heads/main", OTHERS),
    "dot": ("refs/agents/.", OTHERS),
    "hidden": ("refs/agents/.hidden", OTHERS),
    "dash": ("refs/agents/-x", OTHERS),
    "two dots": ("refs/agents/a..b", OTHERS),
    "lock": ("refs/agents/x.lock", OTHERS),
    "dot at the end": ("refs/agents/x.", OTHERS),
    "two parts": ("refs/agents/a/b", OTHERS),
    "empty part": ("refs/agents//a", OTHERS),
    "slash at the end": ("refs/agents/a/", OTHERS),
    "space": ("refs/agents/a b", OTHERS),
    "other case": ("refs/Agents/a", OTHERS),
    "line break": ("refs/agents/a\nrefs/heads/main", OTHERS),
    "line breaks at the end": ("refs/agents/a\n\n", OTHERS),
    "not ASCII": ("refs/agents/é", OTHERS),
    "full width": ("refs/agents/\uff41", OTHERS),
    "escape": ("refs/agents/\x1b[31m", OTHERS),
    "129 characters": ("refs/agents/" + "x" * 129, OTHERS),
    "HEAD": ("HEAD", OTHERS),
    "an anchor": ("refs/gitmirror/anchors/" + "1" * 40, OTHERS),
    "a tip": ("refs/gitmirror/tips/" + "1" * 40, OTHERS),
    "a turn": ("refs/gitmirror/turns/1", OTHERS),
    "a note": ("refs/notes/commits", OTHERS),
    "a pull request": ("refs/pull/1/head", OTHERS),
    "a file of the repository": ("config", OTHERS),
    "a path": ("../../gitmirror.db", OTHERS),
}


@pytest.mark.parametrize(("ref", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_every_other_ref_is_refused_with_words(node: Node, ref: str, reason: str) -> None:
    """The guest reads which ref, what is allowed and, for a branch, where real pushes go; no ref moves."""
    before = own_refs(node)
    answer = push(node.serve, (ZERO, node.tip, ref))
    shown = ref.encode("unicode_escape").decode()
    assert not answer.accepted
    assert f"gitmirror: refused {shown}: {reason}\n" in answer.messages
    assert ALLOWED in answer.messages
    assert (f"git push {node.upstream.url(WIDGETS)} (a redirected guest: pushInsteadOf)" in answer.messages) == (
        reason == BRANCHES
    )
    assert not any(ord(char) < 32 and char != "\n" for char in answer.messages), "nothing to play with a terminal"
    assert own_refs(node) == before


@pytest.mark.parametrize(
    ("refspec", "ref", "reason"),
    [
        ("HEAD:refs/heads/main", "refs/heads/main", BRANCHES),
        ("+HEAD~2:refs/heads/main", "refs/heads/main", BRANCHES),
        ("HEAD:refs/tags/x", "refs/tags/x", BRANCHES),
        (":refs/heads/develop", "refs/heads/develop", BRANCHES),
        ("HEAD:refs/agentsx/y", "refs/agentsx/y", OTHERS),
        ("HEAD:refs/agents/a/b", "refs/agents/a/b", OTHERS),
        ("HEAD:refs/agents/-x", "refs/agents/-x", OTHERS),
        (":refs/agents/kept-deleted", "refs/agents/kept-deleted", "recorded sessions cannot be deleted"),
    ],
)
def test_what_an_agent_sees_on_its_terminal(node: Node, tmp_path: Path, refspec: str, ref: str, reason: str) -> None:
    """git shows the words, each behind `remote:`, and the reason again behind the ref."""
    guest = node.guest(tmp_path / "guest", "--depth=2")
    git("push", "--quiet", "origin", "HEAD:refs/agents/kept-deleted", cwd=guest)
    commit_turn(guest, "refused")
    before = refs(node.mirror)
    code, _, said = git_result("push", "origin", refspec, cwd=guest)
    assert code == 1
    lines = [line.rstrip() for line in said.splitlines()]
    assert f"remote: gitmirror: refused {ref}: {reason}" in lines
    assert any(line.startswith(f"remote: {ALLOWED}") for line in lines)
    assert any("real branches and tags go to the upstream" in line for line in lines) == (reason == BRANCHES)
    assert any("[remote rejected]" in line and line.endswith(f"({reason})") for line in lines)
    assert refs(node.mirror) == before


def test_one_bad_ref_among_good_refuses_the_whole_push(node: Node) -> None:
    """All or nothing; the good ones are told that it was another."""
    before = own_refs(node)
    answer = push(
        node.serve,
        (ZERO, node.tip, "refs/agents/good-1"),
        (node.tip, ZERO[:-1] + "1", "refs/heads/main"),
        (ZERO, node.tip, "refs/agents/good-2"),
    )
    assert answer.report == {
        "refs/agents/good-1": "another ref of this push was refused",
        "refs/heads/main": BRANCHES,
        "refs/agents/good-2": "another ref of this push was refused",
    }
    assert own_refs(node) == before


def test_one_ref_twice_in_a_push_is_refused(node: Node) -> None:
    """Which of the two would win is nobody's guess."""
    before = own_refs(node)
    ref = "refs/agents/twice"
    answer = push(node.serve, (ZERO, node.tip, ref), (ZERO, git("rev-parse", "main~1", cwd=node.mirror), ref))
    assert answer.report == {ref: "named twice in one push"}
    assert own_refs(node) == before


def test_a_delete_by_hand_is_refused(node: Node) -> None:
    """The raw form: a new id of zeros and no pack, alone and beside a good ref."""
    push(node.serve, (ZERO, node.tip, "refs/agents/kept-forever"))
    for beside, pack in (([], b""), ([(ZERO, node.tip, "refs/agents/beside")], EMPTY_PACK)):
        answer = push(node.serve, (node.tip, ZERO, "refs/agents/kept-forever"), *beside, pack=pack)
        assert answer.report["refs/agents/kept-forever"] == "recorded sessions cannot be deleted"
    assert git("rev-parse", "refs/agents/kept-forever", cwd=node.mirror) == node.tip
    assert "refs/agents/beside" not in refs(node.mirror)


def test_every_refusal_is_logged(own_node: Node) -> None:
    """One row for each refused ref: which, by whom, why, and no outcome."""
    node = own_node
    tried: Sequence[tuple[str, str]] = [
        ("refs/heads/main", BRANCHES),
        ("refs/tags/x", BRANCHES),
        ("refs/agentsx/y", OTHERS),
        ("refs/agents/../heads/main", OTHERS),
        ("refs/gitmirror/anchors/1", OTHERS),
        ("HEAD", OTHERS),
        ("refs/agents/\x1b]0;owned\x07", OTHERS),
        ("refs/agents/" + "x" * 2000, OTHERS),
    ]
    for ref, _ in tried:
        push(node.serve, (ZERO, node.tip, ref))
    push(node.serve, (node.tip, ZERO, "refs/agents/s1"), pack=b"")
    send_raw(node, [pkt(f"{ZERO} {node.tip} refs/agents/broken\0 {CAPABILITIES}")])
    rows = assert_log_is_true(node)[::-1]
    assert len(rows) == len(tried) + 2
    for row, (ref, reason) in zip(rows, tried, strict=False):
        assert (row["reason"], row["verdict"], row["outcome"]) == (reason, "rejected", None)
        assert (row["repo"], row["session"], row["client"]) == (WIDGETS, None, "127.0.0.1")
        assert (row["old"], row["new"]) == (None, node.tip)
        assert row["ref"] == ref or (len(row["ref"]) <= 300 and row["ref"].isprintable() and row["ref"].isascii())
    deleted = entry_of(node.serve, "refs/agents/s1")
    assert (deleted["session"], deleted["old"], deleted["new"]) == ("s1", node.tip, None)
    assert entry_of(node.serve, "refs/agents/broken")["verdict"] == "rejected"
    assert refs(node.mirror) == {name: oid for name, oid in refs(node.mirror).items() if "agents" not in name}
