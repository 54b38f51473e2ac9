"""A running appliance beside an upstream, and one repository of it from both ends."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.git.lab import followed
from tests.support.gitutil import git_result, remote_refs
from tests.support.serve import Serve
from tests.support.upstream import HttpUpstream

Moves = dict[str, tuple[str | None, str | None]]


@dataclass(frozen=True)
class Node:
    """An appliance that serves and the upstream its repositories come from."""

    upstream: HttpUpstream
    serve: Serve

    def follow(self, name: str, source: Path | None, *options: str) -> Followed:
        """Put a copy of `source` (None: an empty repository) upstream as `name`, register it, and wait."""
        path = self.upstream.add(name, source)
        self.serve.here("add-repo", self.upstream.url(name), *options)
        return Followed(self, name, path)


@dataclass(frozen=True)
class Followed:
    """One repository: `path` upstream, `mirror` on the node."""

    node: Node
    name: str
    path: Path

    @property
    def mirror(self) -> Path:
        """The bare mirror on disk."""
        return self.node.serve.mirror(self.name)

    @property
    def url(self) -> str:
        """Where guests find it."""
        return f"{self.node.serve.git_url}/{self.name}"

    def refresh(self) -> Moves:
        """Refresh by the command; return what it says moved, and hold that the mirror is the upstream now."""
        moved = self.refresh_all([self.name])[0]["moved"]
        assert followed(self.mirror) == followed(self.path)
        return {change["ref"]: (change["old"], change["new"]) for change in moved}

    def refresh_all(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Refresh by the command and return its answer, whatever came of it."""
        done = json.loads(self.node.serve.here("refresh", *names, "--json", codes=(0, 1)))
        assert isinstance(done, list)
        return done

    def status(self) -> dict[str, Any]:
        """Return this repository's entry of `status`."""
        return repo_status(self.node.serve, self.name)

    def seen(self) -> dict[str, str]:
        """Return what a guest's ls-remote shows."""
        return remote_refs(self.url)

    def can_fetch(self, oid: str, at: Path) -> bool:
        """Whether a guest that has nothing can fetch one commit by its id."""
        git_result("init", "--quiet", str(at))
        return git_result("fetch", "--quiet", "--depth=1", self.url, oid, cwd=at)[0] == 0


def repo_status(serve: Serve, name: str) -> dict[str, Any]:
    """Return one repository's entry of `status`, with and without a running serve."""
    for entry in serve.status()["repos"]:
        if entry["name"] == name:
            return dict(entry)
    raise AssertionError(f"{name} is not in the status")
