"""A node whose recordings are backed up, and a comparison of what two state directories tell."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import WIDGETS, ServeFactory
from tests.recording.conftest import AGENTS, ARCHIVE, TURNS, record_turn
from tests.serving.conftest import SETTLED, Node
from tests.support.gitutil import git, refs
from tests.support.serve import CommandFailed, Serve, Value
from tests.support.upstream import HttpUpstream


@pytest.fixture
def backed(serve_factory: ServeFactory, upstream: HttpUpstream) -> Callable[..., Node]:
    """Return what makes a node with settings for `[backup]`; it asks its upstream only when told to."""

    def make(name: str = "state", **backup: Value) -> Node:
        serve = serve_factory(name, repos=[upstream.url(WIDGETS)], refresh=SETTLED, backup=backup).start()
        serve.wait_for_repo(WIDGETS)
        return Node(serve, upstream)

    return make


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Where backups go; not there yet."""
    return tmp_path / "backups"


def record_session(node: Node, guest: Path, session: str, turns: int = 2) -> list[str]:
    """Record turns, each of which rewrites the one before; return their commits."""
    if not guest.exists():
        node.guest(guest)
    commits = []
    for number in range(turns):
        git("reset", "--quiet", "--hard", "origin/HEAD", cwd=guest)
        commits.append(record_turn(guest, session, f"{session} turn {number}"))
    return commits


def back_up(serve: Serve, to: Path) -> dict[str, Any]:
    """Make a backup; return its report."""
    report = json.loads(serve.here("backup", str(to), "--json"))
    assert isinstance(report, dict)
    return report


def verify(serve: Serve, to: Path) -> list[str]:
    """The files that `backup verify` finds damaged; its exit code says the same."""
    try:
        faults, code = json.loads(serve.here("backup", "verify", str(to), "--json"))["faults"], 0
    except CommandFailed as failure:
        faults, code = json.loads(failure.done.stdout)["faults"], failure.done.returncode
    assert code == (3 if faults else 0)
    return [fault["path"] for fault in faults]


def recorded(mirror: Path) -> dict[str, str]:
    """The refs of sessions and turns in a mirror."""
    return {ref: oid for ref, oid in refs(mirror).items() if ref.startswith((AGENTS, ARCHIVE, TURNS))}


def told(serve: Serve) -> dict[str, Any]:
    """What the commands tell of recorded work, without what only the mirror's refreshes change."""

    def told_here(*command: str) -> Any:
        return json.loads(serve.here(*command, "--json"))

    sessions = told_here("sessions")
    return {
        "sessions": sessions,
        "turns": [told_here("session", "show", each["repo"], each["session"])["turns"] for each in sessions],
        "diffs": [serve.cli("session", "diff", each["repo"], each["session"], "--raw").stdout for each in sessions],
        "audit": serve.here("audit", "export"),
        "tokens": told_here("token", "list"),
        "repos": [(each["name"], each["url"]) for each in told_here("repos")],
    }
