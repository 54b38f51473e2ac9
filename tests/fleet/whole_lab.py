"""A fleet of three nodes whose upstream counts, and what its users see of it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from appliance.core.errors import GitmirrorError
from tests.support.fleet import TestFleet
from tests.support.fleet_users import ask, commits_of, is_warm, send_webhook
from tests.support.generate import add_commit
from tests.support.gitutil import git, wait_until
from tests.support.serve import Serve
from tests.support.upstream import HttpUpstream

REPO = "acme/widgets"
BUSY = 20.0
"""Seconds after which something that takes under two on a machine with nothing else to do has failed."""


@dataclass
class Whole:
    """The fleet with its upstream. `REPO` is registered, and nobody looks at an upstream unless told to."""

    fleet: TestFleet
    upstream: HttpUpstream
    place: Path

    def __getitem__(self, node: str) -> Serve:
        return self.fleet[node]

    def url(self, name: str) -> str:
        """The upstream's URL of a repository."""
        return self.upstream.url(name)

    def tip(self, name: str = REPO) -> str:
        """Where the upstream's branch is."""
        return git("rev-parse", "main", cwd=self.upstream.path(name))

    def upload_packs(self, name: str) -> int:
        """How often the upstream was asked for refs or objects of a repository."""
        return self.upstream.count(name, "git-upload-pack")

    def all_warm(self, name: str) -> float:
        """Waits until every node is warm, and returns for how many seconds."""
        began, tip = time.monotonic(), self.tip(name)
        self.fleet.wait_all(lambda serve: is_warm(serve, name, tip), f"{name} is warm", timeout=BUSY)
        return time.monotonic() - began

    def all_list(self, session: str, commits: list[str], repo: str = REPO) -> float:
        """Waits until every node that runs lists exactly these turns, and returns for how many seconds."""
        began = time.monotonic()
        self.fleet.wait_all(
            lambda serve: lists(serve, session, repo) == commits, f"{session} has {commits}", timeout=BUSY
        )
        return time.monotonic() - began

    def restart(self, node: str) -> None:
        """Starts a node that was killed."""
        self[node].start()
        self[node].wait_for_repo(REPO)


def lists(serve: Serve, session: str, repo: str = REPO) -> list[str]:
    """The commits of a session's turns on a node, and none for a session that it does not have."""
    try:
        return commits_of(serve, repo, session)
    except GitmirrorError:
        return []


def names_of(serve: Serve) -> list[str]:
    """The repositories that a node has."""
    return [repo["name"] for repo in ask(serve, "GET", "repos", limit=1000)["items"]]


def push_upstream(whole: Whole, name: str, told: Serve) -> str:
    """Somebody pushes to the upstream, and it tells one node. Returns the new tip."""
    before = whole.tip(name)
    tip = add_commit(whole.upstream.path(name), "main", {f"new-{time.monotonic_ns()}": "x\n"})
    status = send_webhook(told, name, f"{whole.url(name)}.git", ref="refs/heads/main", before=before, after=tip)
    assert status == 202
    return tip


def wait_settled(whole: Whole, session: str, count: int) -> list[str]:
    """Waits until every node has so many turns of a session in one order, and returns it."""

    def look() -> list[str] | None:
        found = [lists(serve, session) for serve in whole.fleet.nodes.values()]
        return found[0] if len(found[0]) == count and all(each == found[0] for each in found) else None

    return wait_until(look, timeout=BUSY, message=f"the nodes agree on {session}")
