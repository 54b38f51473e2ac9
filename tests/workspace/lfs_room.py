"""Snapshots with LFS files in place, built in this process, with a stand-in for the store of objects."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from appliance.core.config.settings import WorkspaceConfig
from appliance.core.lfs.pointers import Pointer
from appliance.core.models import Health, Repo
from appliance.core.workspace.lfs_ahead import FetchAhead
from appliance.core.workspace.snapshots import Snapshots
from tests.conftest import WIDGETS
from tests.git.lab import Lab
from tests.support.generate import add_commit
from tests.support.gitutil import clean_env, git, run_process
from tests.support.lfs_server import pointer_of

ATTRIBUTES = "*.bin filter=lfs diff=lfs merge=lfs -text\n"
BIG = bytes(range(256)) * 400
SMALL = b"a picture, say\n"


@dataclass
class Store:
    """A stand-in for the node's store of LFS objects: it has what `upstream` has once that was fetched."""

    place: Path
    upstream: dict[str, bytes] = field(default_factory=dict)
    fetches: list[list[str]] = field(default_factory=list)
    gate: asyncio.Event | None = None
    """A fetch waits for this."""

    def add(self, data: bytes) -> bytes:
        """Let the upstream have an object; return its pointer."""
        self.upstream[hashlib.sha256(data).hexdigest()] = data
        return pointer_of(data)

    def path_if_here(self, repo: Repo, oid: str) -> Path | None:
        """As LfsObjects has it."""
        path = self.place / repo.name / oid[:2] / oid
        return path if path.exists() else None

    async def fetch(self, repo: Repo, pointers: Sequence[Pointer]) -> set[str]:
        """As LfsObjects has it."""
        self.fetches.append([pointer.oid for pointer in pointers])
        if self.gate is not None:
            await self.gate.wait()
        for pointer in pointers:
            if pointer.oid in self.upstream:
                path = self.place / repo.name / pointer.oid[:2] / pointer.oid
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(self.upstream[pointer.oid])
        return {pointer.oid for pointer in pointers if self.path_if_here(repo, pointer.oid)}

    def lose(self) -> None:
        """Have nothing any more."""
        shutil.rmtree(self.place)


class LfsRoom:
    """One repository, whose mirror is written to directly."""

    def __init__(self, base: Path, *, lfs: str = "content") -> None:
        self.lab = Lab(base / "state")
        self.bare = self.lab.layout.mirror(WIDGETS)
        git("init", "--quiet", "--bare", "--initial-branch=main", str(self.bare))
        self.repo = self.lab.repo(self.bare, name=WIDGETS)
        self.store = Store(base / "objects")
        self.budget = 2**30
        self.settings = WorkspaceConfig(lfs=lfs)
        self.snapshots = self.begin()

    def begin(self) -> Snapshots:
        """New snapshots, as of a `serve` that has just started."""
        health = Health(cloned=True, head="refs/heads/main")
        ahead = FetchAhead(self.store, lambda: self.budget)
        self.snapshots = Snapshots(
            self.lab.layout, self.lab.mirror, lambda _: health, settings=lambda: self.settings, lfs=ahead
        )
        self.snapshots.look()
        return self.snapshots

    def commit(self, files: dict[str, bytes | str | None], branch: str = "main") -> str:
        """Put a commit on a branch of the mirror."""
        if not git("for-each-ref", f"refs/heads/{branch}", cwd=self.bare):
            start = git("mktree", cwd=self.bare, input="")
            made = git("commit-tree", "-m", "begin", start, cwd=self.bare)
            git("update-ref", f"refs/heads/{branch}", made, cwd=self.bare)
        return add_commit(self.bare, branch, files)

    async def tar(self, branch: str | None = None) -> Path:
        """The tar that a guest gets."""
        return (await self.snapshots.get(self.repo, branch))[1]

    async def until(self, commit: str, missing: int | None = None) -> Path:
        """Wait until the tar is at a commit, with so many files that are pointers; return it."""
        async with asyncio.timeout(60):
            while True:
                current = self.snapshots.current(self.repo)
                if current and current.commit == commit and missing in (None, current.lfs_pointers):
                    return await self.tar()
                await asyncio.sleep(0.01)

    def close(self) -> None:
        """Give the state directory up."""
        self.lab.close()


def unpack(tar: Path, to: Path) -> Path:
    """Extract a tar as a guest does."""
    to.mkdir(parents=True)
    done = run_process(["tar", "-xf", str(tar), "-C", str(to)])
    assert done.returncode == 0, done.stderr
    return to


def with_git_lfs(home: Path) -> dict[str, str]:
    """The environment of a guest in which `git lfs install` was run; skips the test where there is no git-lfs."""
    if shutil.which("git-lfs") is None:
        pytest.skip("there is no git-lfs")
    home.mkdir(parents=True, exist_ok=True)
    env = clean_env(home, GIT_CONFIG_GLOBAL=str(home / ".gitconfig"))
    git("lfs", "install", "--skip-repo", cwd=home, env=env)
    return env


def assert_clean(workspace: Path, env: dict[str, str] | None = None) -> None:
    """Assert that git sees no change, also once it has written the index anew."""
    for _ in range(2):
        assert git("status", "--porcelain", cwd=workspace, env=env) == ""
        assert git("diff", "HEAD", "--stat", cwd=workspace, env=env) == ""
        git("update-index", "--refresh", "--force-write-index", cwd=workspace, env=env)
