"""A guest from its first second to the turn after its death."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.gitutil import git, refs
from tests.workspace.conftest import BUSYBOX, CURL, Node


@pytest.mark.parametrize(("shell", "tools"), [("dash", CURL), ("busybox", BUSYBOX)])
def test_a_guest_hydrates_works_records_dies_and_goes_on(
    node: Node, tmp_path: Path, shell: str, tools: tuple[str, ...]
) -> None:
    """The whole life of a guest, on nothing but git, a shell and the tools of its image."""
    session = f"life-{shell}"

    # A guest comes up and gets its workspace.
    first = node.guest(tmp_path / "first", shell=shell, tools=tools)
    workspace = first.home / "workspace"
    base = first.hydrate(workspace).hydrated(via="snapshot")
    assert base == node.tip
    assert first.git("status", "--porcelain", cwd=workspace) == ""
    assert first.git("remote", "get-url", "origin", cwd=workspace) == node.upstream.url("acme/widgets")

    # The agent works: it edits, deletes and adds, and commits some of it by itself.
    (workspace / "README.md").write_text("A better text.\n")
    (workspace / "run.sh").unlink()
    first.git("-c", "user.name=me", "-c", "user.email=me@example.com", "commit", "-qam", "By hand", cwd=workspace)
    (workspace / "src" / "new file.py").write_text("print('new')\n")

    # At the end of the turn the harness records, and the guest dies with its disk.
    turn = first.record(session, workspace).recorded(session)
    assert refs(node.serve.mirror("acme/widgets"))[f"refs/agents/{session}"] == turn

    # Another guest goes on where the first one left off.
    second = node.guest(tmp_path / "second", shell=shell, tools=tools)
    again = second.home / "workspace"
    assert second.hydrate(again, f"session:{session}").hydrated(via="snapshot") == turn
    assert (again / "README.md").read_text() == "A better text.\n"
    assert (again / "src" / "new file.py").exists() and not (again / "run.sh").exists()
    assert second.git("log", "-2", "--format=%s", cwd=again).splitlines() == [f"Turn of {session}", "By hand"]
    assert second.git("status", "--porcelain", cwd=again) == ""

    # Nothing to say is said; then turn two.
    assert second.record(session, again).out == "recorded nothing\n"
    (again / "two.txt").write_text("second turn\n")
    two = second.record(session, again).recorded(session)
    mirror = node.serve.mirror("acme/widgets")
    assert git("rev-parse", f"{two}~1", cwd=mirror) == turn
    turns = [e for e in node.serve.cli_json("audit") if e["ref"] == f"refs/agents/{session}"]
    assert [(e["new"], e["outcome"]) for e in turns] == [(two, "applied"), (turn, "applied")]
