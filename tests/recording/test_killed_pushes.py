"""Kills each process at each moment of a push: no applied turn is lost, and a failed push leaves none."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.recording.conftest import AGENTS, assert_turns_are_kept, fetches, new_session, turns_of
from tests.recording.trap import MOMENTS, TrappedNode, receive_pack_of
from tests.serving.conftest import assert_mirror_is_clean, commit_turn, entry_of
from tests.support.gitutil import clean_env, git, refs, wait_until
from tests.support.processes import processes_of

pytestmark = pytest.mark.slow


def kill_serve(node: TrappedNode, stopped: int) -> None:
    """serve alone dies, as by the OOM killer; its children live on until the next serve ends them."""
    node.serve.kill()


def kill_receive_pack(node: TrappedNode, stopped: int) -> None:
    """receive-pack dies, its hook lives on."""
    os.kill(receive_pack_of(stopped), signal.SIGKILL)


def kill_hook(node: TrappedNode, stopped: int) -> None:
    """The program that git waits for dies."""
    os.kill(stopped, signal.SIGKILL)


def kill_guest(node: TrappedNode, stopped: int) -> None:
    """Kills none of our processes; the test kills the guest."""


VICTIMS: dict[str, Callable[[TrappedNode, int], None]] = {
    "serve": kill_serve,
    "receive-pack": kill_receive_pack,
    "hook": kill_hook,
    "guest": kill_guest,
}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("victim", VICTIMS)
def test_killed_at_a_moment_of_a_push(trapped: TrappedNode, tmp_path: Path, victim: str, moment: str) -> None:
    """The log, the ref, the turn's ref and the session table agree, and an applied commit can be fetched."""
    node, name = trapped, new_session()
    guest = node.guest(tmp_path / "guest")
    commit = commit_turn(guest, f"{victim} {moment}")
    node.stop_at(moment)
    push = subprocess.Popen(
        ["git", "push", "--quiet", "origin", f"HEAD:{AGENTS}{name}"],
        cwd=guest,
        env=clean_env(tmp_path),
        stderr=subprocess.PIPE,
    )
    try:
        stopped = node.trap.wait()
        if victim == "guest":
            push.kill()
        VICTIMS[victim](node, stopped)
    finally:
        node.trap.open()
        push.communicate(timeout=60)
    if not node.serve.running:
        node.serve.start()
    assert_turns_are_kept(node)
    entry = entry_of(node.serve, f"{AGENTS}{name}")
    if victim == "guest":
        assert entry["outcome"] == "applied", "its push had come in whole"
    elif MOMENTS[moment][2] or victim != "serve":
        # An orphaned receive-pack may still go on until the next serve ends it; both ends are true then.
        # A check of all refs that dies is no verdict: git then checks each ref by itself.
        applied = MOMENTS[moment][2] or (victim, moment) == ("hook", "its objects are checked")
        assert entry["outcome"] == ("applied" if applied else "failed")
    at = refs(node.mirror).get(f"{AGENTS}{name}")
    if entry["outcome"] == "applied":
        assert at == commit and [turn.commit for turn in turns_of(node, name)] == [commit]
        assert fetches(node, commit, tmp_path / "fetch")
    else:
        assert at is None and turns_of(node, name) == []
    # Whoever was killed: the next push of the same session goes through, and no process is left over.
    git("push", "--quiet", "--force", "origin", f"HEAD:{AGENTS}{name}", cwd=guest)
    assert [turn.commit for turn in turns_of(node, name)][-1:] == [commit]
    wait_until(
        lambda: not [pid for pid in processes_of(node.trap.place) if pid != node.serve.pid],
        message="nobody is left over",
    )


def test_after_all_that_the_mirror_is_whole(trapped: TrappedNode) -> None:
    """No quarantine, no lock and no broken object is left when serve was started again."""
    trapped.trap.open()
    if trapped.serve.running:
        trapped.serve.kill()
    trapped.serve.start()
    assert_mirror_is_clean(trapped.mirror)
    assert_turns_are_kept(trapped)
