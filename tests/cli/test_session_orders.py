"""`session keep` and `session drop`: a running `serve` carries them out, and answers what is wrong with them."""

from __future__ import annotations

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
    """The beginning of its name is enough."""
    assert "fix-dns is exempt from retention" in recorded.cli("session", "keep", WIDGETS, "fix").stderr
    assert is_kept(recorded)
    recorded.terminate()
    assert "subject to retention again" in recorded.cli("session", "keep", WIDGETS, "fix-dns", "--off").stderr
    assert not is_kept(recorded)
    assert "no session nobody" in recorded.cli("session", "keep", WIDGETS, "nobody", check=False).stderr


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
