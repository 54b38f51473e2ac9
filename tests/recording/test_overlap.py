"""Two pushes of one session at once, of which one dies without a word: each row says what that push did."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import WIDGETS
from tests.recording.conftest import AGENTS, TURNS, assert_turns_are_kept, new_session, turns_of
from tests.recording.trap import TrappedNode, receive_pack_of
from tests.serving.conftest import Turn, commit_turn, make_turn, wait_settled
from tests.support.gitutil import git, refs
from tests.support.pkt import ZERO, PushConnection, push_bytes, raw_push


def kill_receive_pack(node: TrappedNode, stopped: int) -> None:
    """It reports nothing; serve looks for itself."""
    os.kill(receive_pack_of(stopped), signal.SIGKILL)
    node.trap.open()


def kill_serve(node: TrappedNode, stopped: int) -> None:
    """The next serve looks."""
    node.serve.kill()
    os.kill(receive_pack_of(stopped), signal.SIGKILL)
    node.trap.open()
    node.serve.start()


ENDS = pytest.mark.parametrize("kill", [kill_receive_pack, kill_serve])
Kill = Callable[[TrappedNode, int], None]


@contextlib.contextmanager
def stopped_push(node: TrappedNode, name: str, turn: Turn, moment: str) -> Iterator[int]:
    """A first push of the session that has come to a moment; the pid of what stopped."""
    node.stop_at(moment)
    try:
        with PushConnection(*node.serve.git_address, f"/{WIDGETS}", timeout=60) as guest:
            guest.send(push_bytes([(ZERO, turn.commit, f"{AGENTS}{name}")], turn.pack))
            yield node.trap.wait()
    finally:
        node.trap.open()


def outcomes_of(node: TrappedNode, name: str) -> list[tuple[str, str]]:
    """(new, outcome) of the session's rows, oldest first."""
    rows = [row for row in wait_settled(node.serve) if row["session"] == name]
    return [(row["new"], row["outcome"]) for row in reversed(rows)]


@pytest.mark.slow
@ENDS
def test_a_move_that_a_later_push_overwrote_is_in_the_log(trapped: TrappedNode, tmp_path: Path, kill: Kill) -> None:
    """The ref is not at its commit any more, and nobody reported; it did move."""
    node, name = trapped, new_session()
    first = make_turn(node.mirror, f"{name} first")
    guest = node.guest(tmp_path / "guest")
    second = commit_turn(guest, "second")
    with stopped_push(node, name, first, "the ref has moved, nobody was told") as stopped:
        git("push", "--quiet", "--force", "origin", f"HEAD:{AGENTS}{name}", cwd=guest)
        kill(node, stopped)
    assert outcomes_of(node, name) == [(first.commit, "applied"), (second, "applied")]
    assert [turn.commit for turn in turns_of(node, name)] == [first.commit, second]
    assert_turns_are_kept(node)


@pytest.mark.slow
@ENDS
def test_a_push_whose_commit_another_brought_is_not_applied(trapped: TrappedNode, kill: Kill) -> None:
    """The ref is at its commit and its turn is there, and yet it was not this push."""
    node, name = trapped, new_session()
    turn = make_turn(node.mirror, f"{name} same")
    with stopped_push(node, name, turn, "the turn is there, the ref has not moved") as stopped:
        commands = [(ZERO, turn.commit, f"{AGENTS}{name}")]
        assert raw_push(*node.serve.git_address, f"/{WIDGETS}", commands, turn.pack).accepted
        kill(node, stopped)
    assert outcomes_of(node, name) == [(turn.commit, "failed"), (turn.commit, "applied")]
    assert_turns_are_kept(node)


def test_a_ref_that_cannot_be_locked_has_not_moved(trapped: TrappedNode) -> None:
    """Of one push, one ref's lock is in the way: git 2.51 and newer calls its batch committed all the same."""
    node, stuck, good = trapped, new_session(), new_session()
    turn = make_turn(node.mirror, f"{stuck} locked")
    lock = node.mirror / "refs" / "agents" / f"{stuck}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.touch()
    commands = [(ZERO, turn.commit, f"{AGENTS}{name}") for name in (stuck, good)]
    answer = raw_push(*node.serve.git_address, f"/{WIDGETS}", commands, turn.pack)
    lock.unlink()
    assert answer.report[f"{AGENTS}{stuck}"] != "ok" and answer.report[f"{AGENTS}{good}"] == "ok"
    assert outcomes_of(node, stuck) == [(turn.commit, "failed")]
    assert outcomes_of(node, good) == [(turn.commit, "applied")]
    assert [oid for ref, oid in refs(node.mirror).items() if ref.startswith(TURNS)].count(turn.commit) == 1
    assert turns_of(node, stuck) == []
    assert_turns_are_kept(node)
