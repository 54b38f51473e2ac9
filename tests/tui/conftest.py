"""A node with a repository, for views to look at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import WIDGETS
from tests.support.gitutil import commit_files, git
from tests.support.serve import Serve
from tests.support.upstream import HttpUpstream

SETTLED = {"interval": "1h", "stale_after": "1d"}


@dataclass
class Node:
    """A running serve that follows `acme/widgets`, and refreshes only when told to."""

    serve: Serve
    upstream: HttpUpstream
    base: Path

    def guest(self, name: str) -> Path:
        """A clone."""
        return self.serve.clone(self.base / "guests" / name, WIDGETS, "--depth=1")

    def record(self, guest: Path, session: str, text: str = "print('hello')\n", message: str = "Say hello") -> str:
        """A turn: one file committed and pushed; returns the commit."""
        commit = commit_files(guest, {"src/hello.py": text}, message)
        git("push", "--quiet", "--force", "origin", f"HEAD:refs/agents/{session}", cwd=guest)
        return commit


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, generated_bare: Path) -> Iterator[Node]:
    """One that the tests of a module share; they leave `acme/widgets` as it was."""
    base = tmp_path_factory.mktemp("node")
    with HttpUpstream(base / "upstream") as upstream:
        upstream.add(WIDGETS, generated_bare)
        with Serve(base / "state", repos=[], refresh=SETTLED).start() as serve:
            serve.cli("add-repo", upstream.url(WIDGETS))
            serve.wait_for_repo(WIDGETS)
            yield Node(serve, upstream, base)
