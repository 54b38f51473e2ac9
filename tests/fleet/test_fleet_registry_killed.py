"""A node that is killed at any step of applying an entry of the fleet does the rest after its next start."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from appliance.core.config.fleet import FleetConfig
from appliance.core.config.settings import Config, RefreshConfig
from appliance.core.daemon.fleet_repos import LocalRepos
from appliance.core.daemon.mirror_files import MirrorFiles
from appliance.core.daemon.registry_follower import RegistryFollower
from appliance.core.daemon.state import ServeState
from appliance.core.fleet.bucket import RegistryBucket
from appliance.core.fleet.link import FleetLink
from appliance.core.fleet.messages import RepoEntry
from appliance.core.fleet.registry import FleetRegistry
from appliance.core.fleet.registry_rules import Remote
from appliance.core.git.mirror import discard_repository
from appliance.core.git.mirror_locks import MirrorLocks
from appliance.core.layout import Layout
from appliance.core.recording.found import FoundTurns
from appliance.core.store.database import Database
from appliance.core.store.registry import Wanted
from appliance.core.store.stores import Stores
from appliance.core.upstream import same_upstream
from tests.fleet.test_fleet_registry_rules import AT, Access, SharedBucket

pytestmark = pytest.mark.slow

NAME, OLD, NEW = "acme/x", "https://h/acme/x", "https://h/acme/other"
ENTRY = RepoEntry(NAME, OLD, None, None, True, "b", AT, registration="1")


async def nothing() -> None:
    """What happens meanwhile in most tests."""


class Killed(BaseException):
    """Stands for SIGKILL."""


class Node:
    """A node `a` with one repository of the fleet, whose mirror is on disk. It dies before step number `dies_at`."""

    def __init__(self, directory: Path) -> None:
        self.layout = Layout(directory / "state")
        self.layout.state.mkdir()
        self.bucket = SharedBucket()
        self.stores = Stores.over(Database(directory / "state" / "gitmirror.db"))
        with self.stores.database.reading() as connection:
            connection.execute("PRAGMA synchronous = OFF")
        self.steps, self.dies_at = 0, -1
        self.locks = MirrorLocks()

    def mirror(self, url: str) -> None:
        """Puts a mirror on disk."""
        path = self.layout.mirror(NAME)
        path.mkdir(parents=True)
        (path / "config").write_text(f'[remote "origin"]\n\turl = "{url}"\n')

    @property
    def mirrored(self) -> bool:
        """Whether it is there."""
        return self.layout.mirror(NAME).exists()

    async def serve(self, dies_at: int = -1, meanwhile: Callable[[], Awaitable[None]] = nothing) -> None:
        """A `serve` from its start until everything is applied, at the second try at the latest."""
        self.steps, self.dies_at = 0, dies_at
        state = ServeState(self.layout, Config(fleet=FleetConfig(node="a"), refresh=RefreshConfig()))
        step = self._step

        async def follow() -> None:
            step()
            state.repos = self.stores.registry.all()

        async def delete_mirror(name: str) -> None:
            step()
            discard_repository(self.layout.mirror(name))

        async def delete_others(name: str) -> None:
            step()

        async def look(names: list[str]) -> None:
            step()

        class Mirrors:
            locks = self.locks

            def __call__(self, name: str) -> Any:
                return SimpleNamespace(path=state.layout.mirror(name))

        files = SimpleNamespace(mirrors=Mirrors(), delete_mirror=delete_mirror, delete_others=delete_others)
        stores = SimpleNamespace(
            registry=_Stepping(self.stores.registry, step),
            fleet_repos=_Stepping(self.stores.fleet_repos, step),
            sessions=_Stepping(self.stores.sessions, step),
        )
        follower = SimpleNamespace(follow=follow)
        local = LocalRepos(
            state, cast(Stores, stores), cast(RegistryFollower, follower), cast(MirrorFiles, files),
            cast(FoundTurns, SimpleNamespace(look=look)),
        )  # fmt: skip
        link = SimpleNamespace(node="a", is_up=True, on_up=lambda call: None, config=SimpleNamespace(name="test"))
        access = cast(RegistryBucket, Access(self.bucket))
        fleet = FleetRegistry(cast(FleetLink, link), access, self.stores.fleet_repos, local, same_upstream)
        state.repos = self.stores.registry.all()
        await fleet.take_whole("1", dict(self.bucket.entries))
        fleet._is_read = True
        await fleet.tend()
        await meanwhile()
        await fleet.tend()

    def _step(self) -> None:
        if self.steps == self.dies_at:
            raise Killed
        self.steps += 1

    def has(self, entry: RepoEntry) -> None:
        """The bucket has this from now on."""
        self.bucket.newest += 1
        self.bucket.entries[NAME] = Remote(self.bucket.newest, entry)


class _Stepping:
    """A store each call of which is a step."""

    def __init__(self, store: Any, step: Callable[[], None]) -> None:
        self._store, self._step = store, step

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            self._step()
            return getattr(self._store, name)(*args, **options)

        return call


def removed(node: Node) -> None:
    """Another node removed it."""
    node.has(replace(ENTRY, removed=True, enabled=False))


def purged(node: Node) -> None:
    """Another node purged it."""
    node.has(replace(ENTRY, removed=True, purged=True, enabled=False))


def moved(node: Node) -> None:
    """Another node removed it, and added another URL."""
    node.has(replace(ENTRY, url=NEW, registration="2"))


def renewed(node: Node) -> None:
    """Another node removed it, and added it again."""
    node.has(replace(ENTRY, interval=7.0, registration="2"))


def overtaken(node: Node) -> None:
    """This node removed it and added another URL while another node changed it."""
    node.stores.registry.remove(NAME, "")
    node.stores.registry.add(Wanted(NAME, NEW))
    discard_repository(node.layout.mirror(NAME))
    node.mirror(NEW)
    node.has(replace(ENTRY, interval=7.0))


@pytest.mark.parametrize("happens", [removed, purged, moved, renewed, overtaken])
def test_killed_at_each_step(happens: Callable[[Node], None], tmp_path: Path) -> None:
    for dies_at in range(40):
        directory = tmp_path / str(dies_at)
        directory.mkdir()
        node = Node(directory)
        node.has(ENTRY)
        asyncio.run(node.serve())
        node.mirror(OLD)
        [before] = node.stores.registry.all()
        happens(node)
        try:
            asyncio.run(node.serve(dies_at))
        except Killed:
            asyncio.run(node.serve())
            was_killed = True
        else:
            was_killed = False
        entry = node.bucket.entries[NAME].entry
        assert entry is not None
        repos = node.stores.registry.all()
        assert [(repo.url, repo.interval) for repo in repos] == (
            [] if entry.removed else [(entry.url, entry.interval)]
        ), dies_at
        assert not any(repo.id == before.id for repo in repos), "another registration"
        assert node.mirrored == (happens in (removed, renewed)), dies_at
        assert not node.stores.fleet_repos.pending()
        assert bool(node.stores.fleet_repos.overtaken()) == (happens is overtaken)
        node.stores.database.close()
        if not was_killed:
            assert dies_at > 2
            return
    raise AssertionError("it never came to an end")


def test_a_purge_waits_for_a_push(tmp_path: Path) -> None:
    """Guests no longer find the repository; what the push records is deleted after it."""
    node = Node(tmp_path)
    node.has(ENTRY)
    asyncio.run(node.serve())
    node.mirror(OLD)
    purged(node)

    async def push() -> None:
        pushing = contextlib.AsyncExitStack()
        await pushing.enter_async_context(node.locks.shared(NAME))

        async def end() -> None:
            assert not node.stores.registry.all() and node.mirrored
            assert node.stores.fleet_repos.known()[NAME].revision == 1, "it is not done yet"
            await pushing.aclose()

        await node.serve(meanwhile=end)

    asyncio.run(push())
    assert not node.mirrored
    assert node.stores.fleet_repos.known()[NAME].revision == 2
