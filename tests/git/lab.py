"""The git and refresh rooms on a scratch state directory, worked on directly: no `serve`, no network."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from appliance.core.config.credentials import Credentials
from appliance.core.config.settings import Config
from appliance.core.git.command import Git
from appliance.core.git.keyring import Keyring
from appliance.core.git.mirror import Mirror
from appliance.core.git.mirror_locks import MirrorLocks
from appliance.core.git.ref_sets import ANCHORS, TIPS
from appliance.core.layout import Layout
from appliance.core.maintenance.maintainer import Maintainer
from appliance.core.models import Health, RefChange, Repo
from appliance.core.node.state_dir import make_git, make_state
from appliance.core.process.owner import claim
from appliance.core.refresh.refresher import Refresher
from appliance.core.refresh.runs import MirrorFacts, RefreshRun
from appliance.core.store.health import HealthStore
from tests.support.gitutil import refs

_T = TypeVar("_T")

NAME = "acme/widgets"


class Lab:
    """Mirrors below `state`, each step in an event loop of its own. Close it after use."""

    def __init__(self, state: Path) -> None:
        self.layout = Layout(state)
        make_state(self.layout)
        self._claim = claim(self.layout, "tests")
        self.git = make_git(self.layout, Config(), self._claim.children)

    def put_before_git(self, directory: Path) -> None:
        """Look for git in `directory` first: a program there can take its time and then run the real one."""
        path = f"{directory}{os.pathsep}{self.git.environment['PATH']}"
        self.git = Git(self._claim.children, {**self.git.environment, "PATH": path})

    def close(self) -> None:
        """Give the state directory up."""
        self._claim.release()

    @property
    def running(self) -> int:
        """How many git processes of this lab run."""
        return len(self._claim.children)

    def repo(self, upstream: Path | str, *, name: str = NAME, branch: str | None = None) -> Repo:
        """Return a repository as the registry would hand it out."""
        return Repo(1, name, str(upstream), branch, "cli", None, True, 0.0)

    def mirror(self, name: str = NAME) -> Mirror:
        """Return a mirror, there or not."""
        return Mirror(self.layout.mirror(name), self.git)

    def refresh(
        self,
        repo: Repo,
        *,
        timeout: float = 60.0,
        on_progress: Callable[[str], None] | None = None,
        locks: MirrorLocks | None = None,
        refresher: Refresher | None = None,
    ) -> MirrorFacts:
        """Do one refresh, by default with a refresher that remembers nothing."""
        refresher = refresher or self.refresher(timeout=timeout, locks=locks)
        return self.run(refresher.refresh(RefreshRun(repo, on_progress)))

    def refresher(self, *, timeout: float = 60.0, locks: MirrorLocks | None = None) -> Refresher:
        """Return what refreshes."""
        return Refresher(self.layout, self.git, locks or MirrorLocks(), Keyring(Credentials(), {}), timeout=timeout)

    def maintainer(self, repo: Repo, *, locks: MirrorLocks, clock: Callable[[], float]) -> Keeper:
        """Return a maintainer of one repository and what it stores."""
        return Keeper(self, repo, locks, clock)

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine to its end."""
        return asyncio.run(work)


class Keeper:
    """A `Maintainer` whose stores are plain dictionaries."""

    def __init__(self, lab: Lab, repo: Repo, locks: MirrorLocks, clock: Callable[[], float]) -> None:
        self.columns: dict[str, Any] = {}
        self.times: dict[str, float] = {}
        self.room = Maintainer(
            lab.mirror,
            locks,
            cast(HealthStore, self),
            repos=lambda: [repo],
            health=lambda _: Health(cloned=True, maintained_at=self.columns.get("maintained_at")),
            learn=self._learn,
            clock=clock,
        )

    async def _learn(self, repo_id: int, **columns: Any) -> None:
        self.columns |= columns

    def anchor_times(self, repo_id: int) -> dict[str, float]:
        """As the store has it."""
        return dict(self.times)

    def set_anchor_times(self, repo_id: int, times: dict[str, float]) -> None:
        """As the store does it."""
        self.times = dict(times)


def followed(repository: Path) -> dict[str, str]:
    """Return the branches and tags of a repository with their ids."""
    return {name: oid for name, oid in refs(repository).items() if name.startswith(("refs/heads/", "refs/tags/"))}


def anchored(mirror: Path) -> set[str]:
    """Return the commits that anchors keep."""
    return {name.removeprefix(ANCHORS) for name in refs(mirror) if name.startswith(ANCHORS)}


def shown_tips(mirror: Path) -> set[str]:
    """Return the old tips that receive-pack shows."""
    return {name.removeprefix(TIPS) for name in refs(mirror) if name.startswith(TIPS)}


def moves(changes: tuple[RefChange, ...]) -> Mapping[str, tuple[str | None, str | None]]:
    """Return what moved as `{ref: (old, new)}`."""
    return {change.ref: (change.old, change.new) for change in changes}
