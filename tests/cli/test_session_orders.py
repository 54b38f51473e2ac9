"""`session keep` and `session drop`: a running `serve` carries them out, and answers what is wrong with them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from appliance.core.config.settings import Config
from appliance.core.errors import GitmirrorError
from appliance.core.layout import Layout
from appliance.core.node.node import Node
from appliance.core.node.running import RunningNode
from tests.conftest import WIDGETS
from tests.support.gitutil import commit_files, git
from tests.support.serve import Serve


@pytest.fixture
def recorded(serve: Serve, tmp_path: Path) -> Serve:
    """A node with the session `fix-dns`."""
    guest = serve.clone(tmp_path / "guest", WIDGETS)
    commit_files(guest, {"a": "1\n"}, "One")
    git("push", "--quiet", "origin", "HEAD:refs/agents/fix-dns", cwd=guest)
    return serve


def is_kept(serve: Serve) -> bool:
    """What `sessions` says about the only session."""
    [session] = serve.cli_json("sessions")
    return bool(session["kept"])


@pytest.mark.slow
def test_a_session_is_kept_with_and_without_a_serve(recorded: Serve) -> None:
    assert "fix-dns is exempt from retention" in recorded.cli("session", "keep", WIDGETS, "fix-dns").stderr
    assert is_kept(recorded)
    recorded.terminate()
    assert "subject to retention again" in recorded.cli("session", "keep", WIDGETS, "fix-dns", "--off").stderr
    assert not is_kept(recorded)
    assert "no session nobody" in recorded.cli("session", "keep", WIDGETS, "nobody", check=False).stderr


@pytest.mark.slow
def test_the_beginning_of_a_name_changes_nothing(recorded: Serve) -> None:
    """A script that drops a session twice must not drop another one whose name begins so."""
    for words in (("keep", WIDGETS, "fix"), ("drop", WIDGETS, "fix", "--yes")):
        refused = recorded.cli("session", *words, check=False)
        assert refused.returncode == 1 and "has no session fix" in refused.stderr and "fix-dns" in refused.stderr
    assert not is_kept(recorded)


@pytest.mark.slow
def test_serve_itself_keeps_and_drops(recorded: Serve) -> None:
    """Its errors reach the caller, who has not looked into the database."""
    node = Node(Layout(recorded.state), Config()).current()
    assert isinstance(node, RunningNode)
    with pytest.raises(GitmirrorError, match="has no session 'nobody'"):
        node.keep_session(WIDGETS, "nobody", True)
    with pytest.raises(GitmirrorError, match="has no session nobody"):
        node.drop_session(WIDGETS, "nobody")
    node.keep_session(WIDGETS, "fix-dns", True)
    assert is_kept(recorded)
    node.drop_session(WIDGETS, "fix-dns")
    assert recorded.cli_json("sessions") == []


@pytest.mark.slow
def test_many_are_dropped_and_the_errors_of_one_do_not_stop_the_others(recorded: Serve, tmp_path: Path) -> None:
    """By name and by age: the question names the number and the newest, kept ones stay, and a newer turn saves one."""
    guest = tmp_path / "guest"
    for name in ("one", "two", "busy", "dear"):
        git("push", "--quiet", "origin", f"HEAD:refs/agents/{name}", cwd=guest)
    recorded.cli("session", "keep", WIDGETS, "dear", "fix-dns")
    recorded.cli("session", "keep", WIDGETS, "fix-dns", "--off")

    asked = recorded.cli("session", "drop", WIDGETS, "one", "two", "two", check=False)
    assert asked.returncode == 1 and "Delete them? [y/N]" in asked.stderr
    assert f"2 sessions of {WIDGETS} with 2 turns, the newest of them two, last written at 20" in asked.stderr
    assert "has no session nobody" in recorded.cli("session", "drop", WIDGETS, "one", "nobody", check=False).stderr
    young = recorded.cli_json("session", "drop", "--repo", WIDGETS, "--older-than", "1d", "--yes", "--json")
    assert young == {"repo": WIDGETS, "dropped": [], "kept": [], "failed": []}
    for age in ("400000d", "9999999d"):
        assert recorded.cli_json("session", "drop", "--repo", WIDGETS, "--older-than", age, "--yes", "--json") == young
    assert len(recorded.cli_json("sessions", "--before", "1d")) == 0

    node = Node(Layout(recorded.state), Config()).current()
    with pytest.raises(GitmirrorError, match="busy has a newer turn"):
        node.drop_session(WIDGETS, "busy", "1" * 40)
    # Their last turns are a second old by now, but for that of one.
    deadline = time.monotonic() + 60
    while len(recorded.cli_json("sessions", "--before", "1s")) < 5:
        assert time.monotonic() < deadline
    said = recorded.cli("session", "drop", "--repo", WIDGETS, "--older-than", "1s", "--yes").stderr
    assert f"4 sessions of {WIDGETS} are deleted; 1 that is kept stays" in said
    assert [row["session"] for row in recorded.cli_json("sessions")] == ["dear"]
    recorded.terminate()
    alone = recorded.cli("session", "drop", WIDGETS, "dear", "--yes", check=False)
    assert alone.returncode == 4 and len(recorded.cli_json("sessions")) == 1


def test_what_is_to_be_dropped_must_be_said_in_one_way(tmp_path: Path) -> None:
    """Exit 2, and nothing is read: neither names nor an age, or both, or no repository."""
    from click.testing import CliRunner

    from appliance.cli.main import cli

    for words in ([], [WIDGETS], [WIDGETS, "one", "--older-than", "7d"], ["--older-than", "7d"]):
        done = CliRunner().invoke(cli, ["--state", str(tmp_path / "none"), "session", "drop", *words])
        assert done.exit_code == 2, words
    assert not (tmp_path / "none").exists()
