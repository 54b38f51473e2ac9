"""`session diff --against`: which two commits are compared, and what is said when the bases differ."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from appliance.core.errors import GitmirrorError, NotFound, UsageError
from appliance.core.layout import Layout
from appliance.core.models import Turn
from appliance.core.node.state_dir import open_stores
from appliance.core.recording.comparison import compare, find_other, find_session
from appliance.core.store.audit import Attempt
from appliance.core.store.registry import Wanted
from appliance.core.store.stores import Stores
from tests.conftest import WIDGETS
from tests.recording.conftest import record
from tests.serving.conftest import Node
from tests.support.generate import add_commit
from tests.support.gitutil import commit_files, git
from tests.support.serve import CommandFailed

OLD_BASE, NEW_BASE = "a" * 40, "b" * 40


# Two commits, from a database


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[Stores]:
    """The database of a node with one repository and no session."""
    found = open_stores(Layout(tmp_path / "state"))
    found.registry.add(Wanted(WIDGETS, f"https://h/{WIDGETS}"))
    yield found
    found.database.close()


def commit_of(session: str, turn: int) -> str:
    """The made-up commit of a turn."""
    return f"{session} {turn}".encode().hex().ljust(40, "0")[:40]


def add(stores: Stores, session: str, *bases: str | None) -> None:
    """A session with a turn on each of the bases."""
    for number, base in enumerate(bases, 1):
        at, commit = "2026-01-31T12:00:00.000Z", commit_of(session, number)
        push = Attempt("p", WIDGETS, f"refs/agents/{session}", session, None, commit, "accepted", None, "c")
        [attempt] = stores.audit.record_attempts([push])
        stores.sessions.record(Turn(attempt, WIDGETS, session, commit, base, at, "subject", 1, 1, 1, 0, "c", 1))


@pytest.mark.parametrize(
    ("turn", "against", "commits"),
    [
        (None, None, (OLD_BASE, ("one", 3))),
        (None, "base", (OLD_BASE, ("one", 3))),
        (None, "previous", (("one", 2), ("one", 3))),
        (None, "two", (("two", 2), ("one", 3))),
        (None, "two@1", (("two", 1), ("one", 3))),
        (None, "one@1", (("one", 1), ("one", 3))),
        (2, None, (("one", 1), ("one", 2))),
        (2, "base", (OLD_BASE, ("one", 2))),
        (2, "previous", (("one", 1), ("one", 2))),
        (2, "two", (("two", 2), ("one", 2))),
        (2, "two@01", (("two", 1), ("one", 2))),
        (1, None, (OLD_BASE, ("one", 1))),
        (1, "previous", (OLD_BASE, ("one", 1))),
    ],
)
def test_which_commits_are_compared(
    stores: Stores, turn: int | None, against: str | None, commits: tuple[str | tuple[str, int], tuple[str, int]]
) -> None:
    """The old one first; the default is the base of all turns, and the turn before for one of them."""
    add(stores, "one", OLD_BASE, OLD_BASE, OLD_BASE)
    add(stores, "two", OLD_BASE, OLD_BASE)
    old, new = (each if isinstance(each, str) else commit_of(*each) for each in commits)
    assert compare(stores, WIDGETS, "one", turn, against).commits == (old, new)


def test_the_base_is_that_of_the_turn(stores: Stores) -> None:
    """An agent that merged the upstream meanwhile has another base from then on."""
    add(stores, "one", OLD_BASE, NEW_BASE)
    assert compare(stores, WIDGETS, "one", 1, "base").commits[0] == OLD_BASE
    assert compare(stores, WIDGETS, "one", None, "base").commits[0] == NEW_BASE


def test_names_with_an_at_sign_are_read_as_a_whole_first(stores: Stores) -> None:
    """Such a session can be found in a mirror that comes from elsewhere; it hides no turn, and no turn hides it."""
    add(stores, "fix", OLD_BASE, OLD_BASE)
    assert find_other(stores, WIDGETS, "fix@2") == ("fix", 2)
    add(stores, "fix@2", OLD_BASE)
    add(stores, "fix@10", OLD_BASE)
    assert find_other(stores, WIDGETS, "fix@2") == ("fix@2", None)
    assert find_other(stores, WIDGETS, "fix@2@1") == ("fix@2", 1)
    assert find_other(stores, WIDGETS, "fix@1") == ("fix", 1), "not the beginning of fix@10"
    assert find_other(stores, WIDGETS, "fix@02") == ("fix", 2), "so that turn 2 can still be named"


def test_a_session_may_be_called_base(stores: Stores) -> None:
    """The word means the base; with its turn, the session is meant."""
    add(stores, "one", OLD_BASE)
    add(stores, "base", OLD_BASE)
    assert compare(stores, WIDGETS, "one", None, "base").commits[0] == OLD_BASE
    assert compare(stores, WIDGETS, "one", None, "base@1").commits[0] == commit_of("base", 1)


@pytest.mark.parametrize(
    ("against", "error", "said", "hint"),
    [
        ("nobody", NotFound, f"{WIDGETS} has no session nobody", f"`sessions --repo {WIDGETS}`"),
        ("nobody@1", NotFound, f"{WIDGETS} has no session nobody", f"`sessions --repo {WIDGETS}`"),
        ("", NotFound, "no session without a name", "lists them"),
        ("@1", NotFound, "no session @1", "lists them"),
        ("tw", UsageError, "2 sessions", "give more of the name"),
        ("tw@1", UsageError, "2 sessions", "give more of the name"),
        ("two-a@3", NotFound, "two-a has no turn 3", "its turns are 1 to 1"),
        ("two-a@0", NotFound, "two-a has no turn 0", "its turns are 1 to 1"),
        (f"two-a@{'9' * 5000}", NotFound, "no session two-a@999", "lists them"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_said(
    stores: Stores, against: str, error: type[GitmirrorError], said: str, hint: str
) -> None:
    """With what to do. An empty name, as of a variable that is not set, is not the only session there is."""
    add(stores, "one", OLD_BASE)
    if against:
        add(stores, "two-a", OLD_BASE)
        add(stores, "two-b", OLD_BASE)
    with pytest.raises(error) as caught:
        compare(stores, WIDGETS, "one", None, against)
    assert said in caught.value.message and hint in caught.value.hint
    assert type(caught.value) is error


def test_a_session_that_ended_is_not_taken_for_a_longer_name(stores: Stores) -> None:
    """`compare` takes whole names, because a view may still show a session that has ended."""
    add(stores, "fix-2", OLD_BASE)
    assert find_session(stores, WIDGETS, "fix")["session"] == "fix-2"
    with pytest.raises(GitmirrorError, match="fix has no turns any more"):
        compare(stores, WIDGETS, "fix", None, None)


def test_an_unknown_repository_is_said(stores: Stores) -> None:
    """Rather than that it has no such session."""
    with pytest.raises(GitmirrorError, match="acme/none is not registered"):
        find_session(stores, "acme/none", "one")


@pytest.mark.parametrize(
    ("bases", "against", "noted"),
    [
        ((OLD_BASE, OLD_BASE), None, []),
        ((OLD_BASE, OLD_BASE), "two", []),
        ((NEW_BASE, OLD_BASE), None, []),
        (
            (NEW_BASE, OLD_BASE),
            "two",
            ["what the upstream changed", "bbbbbbbbbbbb of turn 1 of one, aaaaaaaaaaaa of turn 1 of two"],
        ),
        ((None, OLD_BASE), None, ["unrelated to the upstream's: everything is shown"]),
        ((None, OLD_BASE), "two", ["the history of turn 1 of one is unrelated", "also has what it started with"]),
    ],
)
def test_a_diff_that_has_more_in_it_than_agents_did_says_so(
    stores: Stores, bases: tuple[str | None, str], against: str | None, noted: list[str]
) -> None:
    """When the two started from different commits, or one from none."""
    add(stores, "one", bases[0])
    add(stores, "two", bases[1])
    note = compare(stores, WIDGETS, "one", None, against).note
    assert bool(note) == bool(noted)
    assert all(words in note for words in noted), note


# Real sessions, by the command


@dataclass(frozen=True)
class Pair:
    """Two sessions of one task on one base, and a third on a later one."""

    node: Node
    late_base: str


@pytest.fixture(scope="module")
def pair(node: Node, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Two agents write the same file differently; then the upstream moves, and another agent starts."""
    base = tmp_path_factory.mktemp("pair")
    first, second = node.guest(base / "first"), node.guest(base / "second")
    for text in ("red\n", "crimson\n"):
        commit_files(first, {"colour.txt": text, "same.txt": "same\n"}, f"paint it {text}")
        record(first, "cmp-first")
    commit_files(second, {"colour.txt": "blue\n", "same.txt": "same\n"}, "paint it blue")
    record(second, "cmp-second")
    late_base = add_commit(node.upstream.path(WIDGETS), "main", {"upstream.txt": "moved\n"}, "The upstream moves")
    node.serve.cli("refresh", WIDGETS)
    third = node.guest(base / "third")
    commit_files(third, {"colour.txt": "blue\n", "same.txt": "same\n"}, "paint it blue, later")
    record(third, "cmp-third")
    return Pair(node, late_base)


def diffed(pair: Pair, *args: str) -> tuple[str, str]:
    """What `session diff` writes to stdout and to stderr."""
    done = pair.node.serve.cli("session", "diff", WIDGETS, *args)
    return done.stdout, done.stderr


@pytest.mark.slow
def test_two_sessions_of_one_task(pair: Pair) -> None:
    """What they did differently and nothing else: not the base, not what both did alike."""
    stdout, stderr = diffed(pair, "cmp-second", "--against", "cmp-first")
    assert "-crimson\n+blue\n" in stdout and stdout.count("diff --git") == 1
    assert stderr == "turn 1 of cmp-second against turn 2 of cmp-first\n"
    stdout, _ = diffed(pair, "cmp-second", "--against", "cmp-f@1")
    assert "-red\n+blue\n" in stdout
    stdout, stderr = diffed(pair, "cmp-first", "--turn", "2", "--against", "base", "--name-only")
    assert (stdout, stderr) == ("colour.txt\nsame.txt\n", "")
    stdout, stderr = diffed(pair, "cmp-first", "--against", "previous")
    assert "-red\n+crimson\n" in stdout and stderr == ""


def test_different_bases_are_said(pair: Pair) -> None:
    """The upstream's own file is in the diff, which nobody wrote: stderr says from where."""
    stdout, stderr = diffed(pair, "cmp-third", "--against", "cmp-second", "--name-only")
    assert stdout == "upstream.txt\n"
    assert "the bases differ, so the diff also has what the upstream changed between them" in stderr
    assert f"{pair.late_base[:12]} of turn 1 of cmp-third" in stderr


@pytest.mark.slow
def test_the_patch_makes_one_session_of_the_other(pair: Pair, tmp_path: Path) -> None:
    """`--raw` applies to the files of the session that was compared with, whatever their bases are."""
    serve = pair.node.serve
    place = tmp_path / "second"
    serve.cli("session", "checkout", WIDGETS, "cmp-second", str(place))
    patch = tmp_path / "patch"
    patch.write_text(diffed(pair, "cmp-third", "--against", "cmp-second", "--raw")[0])
    git("apply", "--index", str(patch), cwd=place)
    third = serve.cli_json("session", "show", WIDGETS, "cmp-third")["tip"]
    assert git("write-tree", cwd=place) == git("rev-parse", f"{third}^{{tree}}", cwd=pair.node.mirror)


def test_a_session_of_another_repository_is_not_found(pair: Pair) -> None:
    """Sessions of one repository are compared; the error names where it looked."""
    with pytest.raises(CommandFailed) as caught:
        diffed(pair, "cmp-third", "--against", "acme/other:cmp-first")
    assert f"{WIDGETS} has no session acme/other:cmp-first" in str(caught.value)
