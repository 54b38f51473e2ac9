"""Guest, receive-pack or `serve` die at any moment of a push: the log has the true outcome of each ref."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import WIDGETS
from tests.serving.conftest import (
    Node,
    Turn,
    assert_log_is_true,
    assert_mirror_is_clean,
    audit,
    entry_of,
    make_turn,
    wait_settled,
)
from tests.support.gitutil import refs, wait_until
from tests.support.pkt import EMPTY_PACK, FLUSH, ZERO, ProtocolError, PushConnection, push_bytes, raw_push
from tests.support.processes import processes_of

Leave = Callable[[PushConnection], None]


def half_close_then_reset(guest: PushConnection) -> None:
    """First the end of what the guest sends, then the end of the guest."""
    guest.half_close()
    guest.abort()


LEAVES: dict[str, Leave] = {
    "closes": lambda guest: guest.sock.close(),
    "resets": PushConnection.abort,
    "half-closes, then resets": half_close_then_reset,
}
MOMENTS = {
    "before its commands": lambda data, head: 0,
    "in the middle of a length": lambda data, head: 2,
    "in the middle of its commands": lambda data, head: head // 2,
    "before its flush": lambda data, head: head - len(FLUSH),
    "after its flush": lambda data, head: head,
    "in the head of its pack": lambda data, head: head + 6,
    "in the middle of its pack": lambda data, head: (head + len(data)) // 2,
    "a byte before the end": lambda data, head: len(data) - 1,
    "without reading the answer": lambda data, head: len(data),
}


@pytest.mark.parametrize("leave", LEAVES.values(), ids=LEAVES.keys())
@pytest.mark.parametrize("moment", MOMENTS.values(), ids=MOMENTS.keys())
def test_a_guest_that_dies(
    node: Node, request: pytest.FixtureRequest, moment: Callable[..., int], leave: Leave
) -> None:
    """At any byte, by a close or a reset: the outcome in the log is what really happened to the ref."""
    turn = make_turn(node.mirror, request.node.name, size=200_000)
    ref = f"refs/agents/dies-{turn.commit}"
    data = push_bytes([(ZERO, turn.commit, ref)], turn.pack)
    sent = moment(data, len(data) - len(turn.pack))
    with PushConnection(*node.serve.git_address, f"/{WIDGETS}") as guest:
        guest.send(data[:sent])
        leave(guest)
    rows = [row for row in wait_settled(node.serve) if row["ref"] == ref]
    moved = refs(node.mirror).get(ref)
    assert moved in (None, turn.commit)
    assert [row["outcome"] == "applied" for row in rows] == ([True] if moved else [False] * len(rows))
    if sent >= len(data):
        assert rows or request.node.callspec.id.startswith("resets"), "a push that came whole is in the log"
    else:
        assert moved is None
    assert_mirror_is_clean(node.mirror)


@pytest.mark.slow
def test_guests_that_die_at_random(own_node: Node) -> None:
    """Twenty-four guests at once, each cut off at a random byte in a random way, some on one session."""
    node, dice = own_node, random.Random(11)
    turns = [make_turn(node.mirror, f"random {number}", size=dice.choice((10, 5_000, 60_000))) for number in range(24)]

    def be_a_guest(number: int, turn: Turn) -> None:
        ref = f"refs/agents/random-{number}"
        data = push_bytes([(ZERO, turn.commit, ref)], turn.pack)
        stop = dice.choice((dice.randrange(len(data)), dice.randrange(300), len(data), len(data)))
        with PushConnection(*node.serve.git_address, f"/{WIDGETS}") as guest, contextlib.suppress(OSError):
            guest.send(data[:stop])
            time.sleep(dice.random() * 0.1)
            dice.choice(list(LEAVES.values()))(guest)

    run_together([partial(be_a_guest, number, turn) for number, turn in enumerate(turns)])
    rows = assert_log_is_true(node)
    assert len({row["outcome"] for row in rows}) >= 2, "some were applied and some not, or the dice are loaded"
    assert_mirror_is_clean(node.mirror)
    assert len(list((node.serve.state / "run" / "pushes").iterdir())) == 0


# The children


def children_of(node: Node) -> dict[str, list[int]]:
    """The processes that work on the mirror, by the word that tells what they do."""
    found: dict[str, list[int]] = {}
    for pid in processes_of(node.mirror):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            found.setdefault(words[1] if words[0].endswith("/git") else Path(words[0]).name, []).append(pid)
    return found


@pytest.mark.parametrize("victim", ["git-daemon", "receive-pack", "unpack-objects", "index-pack"])
@pytest.mark.slow
def test_a_child_that_is_killed_in_the_middle_of_a_push(own_node: Node, victim: str) -> None:
    """Whichever process of the push dies: the guest is not left hanging, the outcome is true, the next push works."""
    node = own_node
    files = 150 if victim == "index-pack" else 1
    turn = make_turn(node.mirror, victim, size=400_000 // files, files=files)
    data = push_bytes([(ZERO, turn.commit, "refs/agents/s1")], turn.pack)
    with PushConnection(*node.serve.git_address, f"/{WIDGETS}", timeout=60) as guest:
        guest.send(data[:200_000])
        pid = wait_until(lambda: children_of(node).get(victim), message=f"{victim} runs")[0]
        os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError, ProtocolError):
            guest.send(data[200_000:])
            guest.half_close()
            assert not guest.read_report().accepted
    [row] = assert_log_is_true(node)
    assert row["outcome"] == "failed"
    wait_until(lambda: node.serve.processes() == [node.serve.pid], message="no process of the push is left")
    assert raw_push(*node.serve.git_address, f"/{WIDGETS}", [(ZERO, turn.commit, "refs/agents/s1")], turn.pack).accepted
    assert_log_is_true(node)
    node.serve.restart()
    assert_mirror_is_clean(node.mirror)


# serve itself


@pytest.mark.parametrize(
    "moment",
    ["mid-pack", *(pytest.param(each, marks=pytest.mark.slow) for each in ("whole pack, answer unread", "answered"))],
)
def test_serve_killed_at_a_moment_of_a_push(own_node: Node, moment: str) -> None:
    """`kill -9` of `serve` leaves an attempt without an outcome; the next start settles it by what the refs are."""
    node = own_node
    turn = make_turn(node.mirror, moment, size=300_000)
    data = push_bytes([(ZERO, turn.commit, "refs/agents/s1")], turn.pack)
    with PushConnection(*node.serve.git_address, f"/{WIDGETS}") as guest:
        guest.send(data[:100_000] if moment == "mid-pack" else data)
        wait_until(lambda: audit(node.serve), message="the attempt is logged")
        if moment == "answered":
            assert guest.read_report().accepted
        node.serve.kill()
    node.serve.start()
    [row] = assert_log_is_true(node)
    assert row["outcome"] == {"mid-pack": "failed", "answered": "applied"}.get(moment, row["outcome"])
    assert_mirror_is_clean(node.mirror)


@pytest.mark.slow
def test_what_a_killed_serve_left_running_writes_nothing_more(own_node: Node) -> None:
    """The orphans of a killed `serve` are ended before the log is settled: no ref moves after its outcome is told."""
    node = own_node
    turn = make_turn(node.mirror, "orphan", size=300_000)
    data = push_bytes([(ZERO, turn.commit, "refs/agents/orphan")], turn.pack)
    with PushConnection(*node.serve.git_address, f"/{WIDGETS}") as guest:
        guest.send(data[:-1000])
        orphan = wait_until(lambda: children_of(node).get("receive-pack"), message="receive-pack runs")[0]
        # It ends by itself when it runs; stopped, it is what outlives its serve.
        os.kill(orphan, signal.SIGSTOP)
        wait_until(lambda: audit(node.serve), message="the attempt is logged")
        node.serve.kill()
        node.serve.start()
        assert orphan not in node.serve.processes()
    [row] = assert_log_is_true(node)
    assert (row["outcome"], row["reason"]) == ("failed", "settled at start: serve was ended before the ref moved")
    assert_mirror_is_clean(node.mirror)


@pytest.mark.slow
def test_serve_killed_again_and_again_while_agents_push(own_node: Node) -> None:
    """Four kills at random moments with four agents pushing turn after turn: no row is lost, none is false."""
    node, dice, done = own_node, random.Random(23), threading.Event()
    node.serve.keep_ports()
    address = node.serve.git_address
    turns = [make_turn(node.mirror, f"turn {number}", size=30_000) for number in range(10)]
    told: list[tuple[str, str, str]] = []

    def be_an_agent(agent: int) -> None:
        number, ref = agent, f"refs/agents/agent-{agent}"
        while not done.is_set():
            turn = turns[number % len(turns)]
            with (
                contextlib.suppress(OSError, ProtocolError),
                PushConnection(*address, f"/{WIDGETS}", timeout=60) as guest,
            ):
                old = guest.answer.refs.get(ref, ZERO)
                number += old == turn.commit
                if old != turn.commit:
                    guest.send(push_bytes([(old, turn.commit, ref)], turn.pack))
                    if guest.read_report().accepted:
                        told.append((ref, old, turn.commit))
            time.sleep(0.005)

    def kill_again_and_again() -> None:
        try:
            for _ in range(4):
                accepted = len(told)
                wait_until(lambda accepted=accepted: len(told) > accepted + 3, timeout=60, message="agents push")  # type: ignore[misc]
                time.sleep(dice.random() * 0.2)
                node.serve.kill()
                node.serve.start()
        finally:
            done.set()

    run_together([*[partial(be_an_agent, agent) for agent in range(4)], kill_again_and_again])
    rows = assert_log_is_true(node, timeout=60)
    # The last serve may itself run git for a moment, after it has written that all is settled.
    wait_until(lambda: node.serve.processes() == [node.serve.pid], message="no process of a killed serve is left")
    applied = {(row["ref"], row["old"] or ZERO, row["new"]) for row in rows if row["outcome"] == "applied"}
    assert set(told) <= applied, "who was told that it is recorded is in the log as recorded"
    assert_mirror_is_clean(node.mirror)


@pytest.mark.slow
def test_an_attempt_that_lost_its_turn_file_is_settled_by_the_ref(own_node: Node) -> None:
    """`serve` is killed between the ref and its outcome, and its notes are lost: the ref itself shows the outcome."""
    node = own_node
    turn = make_turn(node.mirror, "notes lost", size=100)
    with PushConnection(*node.serve.git_address, f"/{WIDGETS}") as guest:
        guest.send(push_bytes([(ZERO, turn.commit, "refs/agents/s1")], turn.pack)[:-10])
        wait_until(lambda: audit(node.serve), message="the attempt is logged")
        node.serve.kill()
    for note in (node.serve.state / "run" / "pushes").iterdir():
        note.unlink()
    node.serve.start()
    [row] = assert_log_is_true(node)
    assert row["outcome"] == "failed"
    assert entry_of(node.serve, "refs/agents/s1")["id"] == row["id"]
    assert raw_push(*node.serve.git_address, f"/{WIDGETS}", [(ZERO, node.tip, "refs/agents/s2")], EMPTY_PACK).accepted


def run_together(works: list[Callable[[], None]]) -> None:
    """Run each in a thread of its own, and raise the first error of them."""
    errors: list[BaseException] = []

    def guard(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guard, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    if errors:
        raise errors[0]
