"""The push policy: nothing but `refs/agents/<session>`, whatever is thrown at it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from appliance.core.recording import policy
from appliance.core.recording.policy import ALLOWED, MOST_REFS, refusal_of, review, session_of
from tests.support.gitutil import git_bytes

OID, OTHER, ZERO = "1" * 40, "a" * 40, "0" * 40
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"

# fmt: off
TRICKY = [
    "a", "Z", "0", ".", "..", "-", "_", ".lock", "/", "\\", " ", "~", "^", ":", "?", "*", "[", "@{", "\n", "\0",
    "\u00e9", "\u2024", "refs/", "agents/", "heads/",
]
# fmt: on
SESSIONS = st.lists(st.sampled_from(TRICKY), max_size=8).map("".join)
STARTS = st.sampled_from(["refs/agents/", "refs/agents", "refs/Agents/"])
NEARLY = st.builds(lambda start, rest: start + rest, STARTS, SESSIONS)
OLDS = st.sampled_from([OID, OTHER, ZERO, "", "x" * 40])
NEWS = st.sampled_from([OID, ZERO, "1" * 39])
ANY_REF = st.one_of(st.text(max_size=60), NEARLY)


def is_session(name: str) -> bool:
    """The contract's sentence, word by word and without a regex."""
    return (
        1 <= len(name) <= 128
        and all(char in LETTERS + "._-" for char in name)
        and not name.startswith((".", "-"))
        and ".." not in name
        and not name.endswith(".")
        and not name.endswith(".lock")
    )


@pytest.mark.parametrize("session", ["s1", "a", "_x", "A.b-c_d", "0", "x" * 128, "lock", "a.lockx", "x.loc", "HEAD"])
def test_sessions_of_the_contract_are_accepted(session: str) -> None:
    """And come out of the ref's name as they are."""
    assert session_of(f"refs/agents/{session}") == session
    assert refusal_of(ZERO, OID, f"refs/agents/{session}") is None


@pytest.mark.parametrize(
    "ref",
    ["refs/heads/main", "refs/tags/x", "refs/agentsx/y", "refs/agents/../heads/main", "refs/agents/", "refs/agents",
     "refs/agents/a/b", "refs/agents//a", "refs/agents/.a", "refs/agents/-a", "refs/agents/a..b", "refs/agents/a.",
     "refs/agents/a.lock", "refs/agents/" + "x" * 129, "refs/agents/a\n", "refs/agents/a\0b", "refs/agents/a b",
     "REFS/agents/a", " refs/agents/a", "/refs/agents/a", "HEAD", "refs/gitmirror/turns/1", "refs/pull/1/head", "",
     "refs/agents/é", "refs/agents/\uff11", "refs/heads/refs/agents/a", "agents/a"],
)  # fmt: skip
def test_everything_else_is_refused(ref: str) -> None:
    """Neighbours, tricks with dots and slashes, other alphabets, other places."""
    assert session_of(ref) is None
    assert refusal_of(ZERO, OID, ref)
    assert ref in review([(ZERO, OID, ref)])


@pytest.mark.slow
@given(ANY_REF)
@example("refs/agents/a.lock")
@settings(max_examples=500)
def test_the_rule_equals_the_contracts_sentence(ref: str) -> None:
    """For any text at all, in both directions."""
    head, name = ref[: len("refs/agents/")], ref[len("refs/agents/") :]
    assert (session_of(ref) is not None) == (head == "refs/agents/" and is_session(name))


@pytest.mark.slow
@given(st.lists(st.tuples(OLDS, NEWS, ANY_REF), max_size=20))
@settings(max_examples=500)
def test_a_push_that_is_let_through_writes_sessions_only(commands: list[tuple[str, str, str]]) -> None:
    """Whatever the mix: at most 16 different refs, each a session, none deleted, ids that are ids."""
    if review(commands):
        return
    refs = [ref for _, _, ref in commands]
    assert len(refs) == len(set(refs)) <= MOST_REFS
    for old, new, ref in commands:
        assert is_session(ref.removeprefix("refs/agents/"))
        assert ref.startswith("refs/agents/")
        assert new == OID
        assert old in (OID, OTHER, ZERO)


@given(st.lists(st.tuples(st.just(ZERO), st.sampled_from([OID, ZERO]), ANY_REF), min_size=1, max_size=20))
def test_a_push_is_refused_whole_or_not_at_all(commands: list[tuple[str, str, str]]) -> None:
    """An agent that sees half of its push done does not look at the other half."""
    refused = review(commands)
    assert refused.keys() in (set(), {ref for _, _, ref in commands})
    assert all(refused.values())


def test_a_deletion_is_refused_as_such() -> None:
    """With SHA-256 ids too."""
    assert refusal_of(OID, ZERO, "refs/agents/s1") == "recorded sessions cannot be deleted"
    assert refusal_of("1" * 64, "0" * 64, "refs/agents/s1") == "recorded sessions cannot be deleted"
    assert refusal_of("1" * 64, "2" * 64, "refs/agents/s1") is None


@pytest.mark.parametrize("oid", ["", "1" * 39, "1" * 41, "1" * 63, "G" * 40, "A" * 40, "1" * 40 + "\n", "\uff11" * 40])
def test_what_is_no_object_id_is_refused(oid: str) -> None:
    """A malformed id on either side is refused, because it would reach git and the log."""
    assert refusal_of(oid, OID, "refs/agents/s1") == "malformed object id"
    assert refusal_of(ZERO, oid, "refs/agents/s1") == "malformed object id"


@pytest.mark.parametrize("ref", ["refs/heads/main", "refs/tags/v1"])
def test_branches_and_tags_are_told_where_they_belong(ref: str) -> None:
    """What the agent can do instead."""
    assert "upstream" in (refusal_of(ZERO, OID, ref) or "")


def test_sixteen_refs_are_allowed_and_seventeen_are_not() -> None:
    """The limit of the contract."""
    commands = [(ZERO, OID, f"refs/agents/s{number}") for number in range(17)]
    assert review(commands[:16]) == {}
    assert set(review(commands).values()) == {"17 refs in one push, at most 16 are allowed"}


def test_a_ref_named_twice_refuses_the_push() -> None:
    """A ref named twice is refused, because it is undefined which command applies."""
    refused = review([(ZERO, OID, "refs/agents/a"), (ZERO, OTHER, "refs/agents/a"), (ZERO, OID, "refs/agents/b")])
    assert refused == {
        "refs/agents/a": "named twice in one push",
        "refs/agents/b": "another ref of this push was refused",
    }


def test_the_text_of_what_is_allowed_names_the_rule() -> None:
    """It is what a refused agent reads."""
    assert "refs/agents/SESSION" in ALLOWED
    assert "1 to 128" in ALLOWED


@given(st.lists(st.text(LETTERS + "._-", min_size=1).filter(is_session), min_size=1, max_size=30))
@settings(max_examples=5, deadline=None)
@example(["a", "_", "a-", "a.b", "x" * 128, "a--", "a.lock.b", "0", "lock", "HEAD"])
def test_git_accepts_every_ref_that_is_accepted(sessions: list[str]) -> None:
    """Otherwise a push would pass both guards and then fail with an unhelpful message."""
    for session in sessions:
        assert session_of(f"refs/agents/{session}") == session
        code, _, _ = git_bytes("check-ref-format", f"refs/agents/{session}")
        assert code == 0, session


def test_the_policy_runs_where_nothing_but_the_standard_library_is(tmp_path: Path) -> None:
    """As the hook runs it: a copy in another directory, `python -IS`, no package around it."""
    assert policy.__file__
    (tmp_path / "policy.py").write_text(Path(policy.__file__).read_text())
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import policy; print(policy.session_of('refs/agents/a'))"
    )
    done = subprocess.run([sys.executable, "-IS", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "a\n"
