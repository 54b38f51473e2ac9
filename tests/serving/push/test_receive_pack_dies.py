"""receive-pack that ends before a push has begun: the guest is told at once, and the log knows all of it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import WIDGETS
from tests.serving.conftest import (
    Node,
    assert_log_is_true,
    audit,
    clients,
    commit_turn,
    entry_of,
    read_all,
    wait_settled,
)
from tests.serving.fetch.conftest import wait_warm
from tests.support.gitutil import git_result, refs, wait_until
from tests.support.pkt import EMPTY_PACK, ZERO, PushConnection, daemon_request, push_bytes
from tests.support.serve import Serve

ENDED = "git receive-pack ended before the push began"


@pytest.fixture(scope="module", autouse=True)
def workspaces() -> None:
    """No workspaces are kept: what builds one would complain of the harm, and have it healed while the test looks."""
    Serve.keeps_workspaces = False


def break_config(mirror: Path) -> None:
    """No git can read it."""
    (mirror / "config").write_text("[garbage\n")


def break_setting(mirror: Path) -> None:
    """Fetches do not mind, receive-pack does."""
    with (mirror / "config").open("a") as config:
        config.write("\n[receive]\n\tunpackLimit = rubbish\n")


def break_objects(mirror: Path) -> None:
    """git no longer recognises it as a repository."""
    (mirror / "objects").rename(mirror / "objects.away")


@pytest.mark.slow
@pytest.mark.parametrize("road", ["git", "http"])
@pytest.mark.parametrize("harm", [break_config, break_setting, break_objects])
def test_a_push_to_a_broken_mirror_fails_at_once(
    own_node: Node, tmp_path: Path, road: str, harm: Callable[[Path], None]
) -> None:
    """Not only after `idle_timeout`. The error says what is wrong and names no directory of the node."""
    guest = own_node.guest(tmp_path / "guest")
    commit_turn(guest, "a turn")
    # A fetch that failed would have the mirror healed.
    wait_warm(own_node.serve)
    harm(own_node.mirror)
    base = own_node.serve.git_url if road == "git" else own_node.serve.http_url
    # `idle_timeout` is five minutes, and git is waited for one.
    code, _, said = git_result("push", f"{base}/{WIDGETS}", "HEAD:refs/agents/s1", cwd=guest)
    assert code != 0 and ENDED in said
    assert str(own_node.serve.state) not in said
    # It named no ref: there is no attempt to be settled, and no place that it keeps.
    assert audit(own_node.serve) == []
    wait_until(lambda: clients(own_node.serve) == 0, message="no connection is left")


@pytest.mark.slow
@pytest.mark.parametrize("harm", [break_config, break_setting, break_objects])
def test_a_guest_that_does_not_wait_leaves_nothing_open(own_node: Node, harm: Callable[[Path], None]) -> None:
    """A guest that does not wait for the list of refs gets the same error. Refs named in time are logged as refused."""
    tip = own_node.tip
    wait_warm(own_node.serve)
    harm(own_node.mirror)
    with daemon_request(*own_node.serve.git_address, "git-receive-pack", f"/{WIDGETS}") as sock:
        sock.sendall(push_bytes([(ZERO, tip, "refs/agents/eager")], EMPTY_PACK))
        answer = read_all(sock)
    assert ENDED.encode() in answer
    for entry in wait_settled(own_node.serve):
        assert (entry["ref"], entry["verdict"]) == ("refs/agents/eager", "rejected")
        assert ENDED in entry["reason"]


@pytest.mark.parametrize("version", [*(pytest.param(each, marks=pytest.mark.slow) for each in (0, 1)), 2])
def test_a_fetch_from_a_broken_mirror_names_no_directory(own_node: Node, version: int) -> None:
    """In each protocol version the guest gets an error, and nothing of where the node keeps its mirrors."""
    # What warms the cache would complain as well, and have it healed a second time beside the command.
    wait_warm(own_node.serve)
    own_node.upstream.refuse()
    break_objects(own_node.mirror)
    # The first complaint of any git in the mirror has it healed: without the upstream, into a repository of refs alone.
    # The next heal waits for a minute, so the mirror stays broken for both requests.
    assert own_node.serve.cli("heal", WIDGETS, check=False).returncode != 0
    shutil.rmtree(own_node.mirror / "objects")
    with daemon_request(
        *own_node.serve.git_address, "git-upload-pack", f"/{WIDGETS}", [f"version={version}"] if version else []
    ) as sock:
        said = read_all(sock) if version < 2 else b""
    assert (b"ERR gitmirror: git cannot read this mirror" in said) == (version < 2)
    code, _, told = git_result("-c", f"protocol.version={version}", "ls-remote", own_node.url)
    assert code != 0
    assert str(own_node.serve.state) not in told


def kill_children(serve: Serve) -> None:
    """kill -9 whatever `serve` has started, unless it has just ended by itself."""
    for pid in serve.processes():
        if pid != serve.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_one_that_is_killed_behind_its_list_of_refs(own_node: Node) -> None:
    """The push is refused by its report, is in the log as refused, and moves nothing; the next one goes through."""
    command = (ZERO, own_node.tip, "refs/agents/killed")
    with PushConnection(*own_node.serve.git_address, f"/{WIDGETS}") as connection:
        kill_children(own_node.serve)
        wait_until(lambda: own_node.serve.processes() == [own_node.serve.pid], message="the child is gone")
        connection.send(push_bytes([command], EMPTY_PACK))
        answer = connection.read_report()
    assert ENDED in answer.report["refs/agents/killed"]
    entry = entry_of(own_node.serve, "refs/agents/killed")
    assert entry["verdict"] == "rejected" and ENDED in entry["reason"]
    assert "refs/agents/killed" not in refs(own_node.mirror)
    with PushConnection(*own_node.serve.git_address, f"/{WIDGETS}") as connection:
        connection.send(push_bytes([command], EMPTY_PACK))
        assert connection.read_report().report == {"refs/agents/killed": "ok"}
    assert_log_is_true(own_node)
