"""The second guard by itself: git daemon with the serving configuration, and no relay before it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.serving.conftest import Node
from tests.support.gitutil import clean_env, git, refs, run_process
from tests.support.pkt import ZERO, pkt, push_bytes


def push_past_the_relay(node: Node, ref: str, **environment: str | None) -> str:
    """Push with git daemon itself, configured as `serve` does it; return all that it says."""
    turns = node.serve.home / "turns"
    turns.write_text("".join(f"{each} 1\n" for each in (ref, "refs/heads/main")))
    given = {"GITMIRROR_PUSH": "test", "GITMIRROR_TURNS": str(turns), "GITMIRROR_SESSIONS": "*"}
    config = str(node.serve.state / "run" / "serving.config")
    env = clean_env(node.serve.home, GIT_CONFIG_GLOBAL=config, **{**given, **environment})
    daemon = f"{git('--exec-path')}/git-daemon"
    argv = [daemon, "--inetd", "--export-all", "--strict-paths", "--enable=receive-pack", str(node.mirror)]
    data = pkt(f"git-receive-pack {node.mirror}\0") + push_bytes([(ZERO, node.tip, ref)])
    return run_process(argv, cwd=Path("/"), env=env, input=data).stdout.decode(errors="replace")


def test_the_hook_alone_allows_what_is_allowed(node: Node) -> None:
    """The tests below prove something only if an allowed push without the relay succeeds."""
    assert "ok refs/agents/alone" in push_past_the_relay(node, "refs/agents/alone")
    assert git("rev-parse", "refs/agents/alone", cwd=node.mirror) == node.tip


@pytest.mark.parametrize(
    "ref", ["refs/heads/x", "refs/tags/x", "refs/agents/a/b", "refs/agentsx/y", "refs/gitmirror/anchors/x"]
)
def test_the_hook_alone_refuses_every_other_ref(node: Node, ref: str) -> None:
    """The second guard does not trust the first."""
    before = refs(node.mirror)
    said = push_past_the_relay(node, ref)
    assert f"ng {ref} " in said
    assert refs(node.mirror) == before


def test_the_hook_alone_refuses_a_push_that_is_in_no_log(node: Node) -> None:
    """A receive-pack that `serve` did not start writes nothing."""
    before = refs(node.mirror)
    for missing in (None, ""):
        said = push_past_the_relay(node, "refs/agents/s1", GITMIRROR_PUSH=missing)
        assert "gitmirror: refused: this push did not come through gitmirror and is in no log" in said
        assert "ng refs/agents/s1 pre-receive hook declined" in said
    assert refs(node.mirror) == before


@pytest.mark.parametrize(
    "text",
    ["", "def review(", "raise SystemExit(0)", "def review(commands): return {}", "import os; os._exit(3)", None],
    ids=["empty", "no syntax", "exits", "says yes without its constants", "leaves", "missing"],
)
def test_the_hook_alone_fails_closed(node: Node, text: str | None) -> None:
    """A policy that is broken in whatever way refuses everything, also what is allowed."""
    policy = node.serve.state / "run" / "hooks" / "policy.py"
    whole, before = policy.read_bytes(), refs(node.mirror)
    policy.unlink()
    try:
        if text is not None:
            policy.write_text(text)
        for ref in ("refs/heads/x", "refs/agents/s1"):
            assert f"ng {ref} pre-receive hook declined" in push_past_the_relay(node, ref)
    finally:
        policy.write_bytes(whole)
    assert refs(node.mirror) == before


def test_a_python_of_the_guests_making_is_not_run(node: Node, tmp_path: Path) -> None:
    """Modules and start-up files of the environment do not reach the hook: it runs isolated."""
    (tmp_path / "policy.py").write_text("def review(commands): return {}\nMOST_REFS = 16\nALLOWED = ''\n")
    (tmp_path / "re.py").write_text("raise SystemExit(0)\n")
    (tmp_path / "sitecustomize.py").write_text("import os; os._exit(0)\n")
    said = push_past_the_relay(
        node, "refs/heads/x", PYTHONPATH=str(tmp_path), PYTHONSTARTUP=str(tmp_path / "re.py"), PYTHONHOME=None
    )
    assert "ng refs/heads/x pre-receive hook declined" in said
