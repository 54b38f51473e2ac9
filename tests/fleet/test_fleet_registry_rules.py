"""Who wins: the rules by themselves, and three simulated nodes that agree whatever happens in whatever order."""

from __future__ import annotations

import asyncio
import atexit
import functools
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.core.errors import Conflict, GitmirrorError
from appliance.core.fleet.bucket import Overtaken, RegistryBucket
from appliance.core.fleet.link import FleetAway, FleetLink
from appliance.core.fleet.messages import NotOurs, RepoEntry
from appliance.core.fleet.names import key_of
from appliance.core.fleet.registry import FleetRegistry
from appliance.core.fleet.registry_rules import (
    Remote,
    Verdict,
    added,
    data_of,
    is_met,
    is_renewed,
    judge,
    outgoing,
    parse,
    words_of_overtaken,
)
from appliance.core.store.database import Database
from appliance.core.store.fleet_repos import KnownEntry, Pending, Settled
from appliance.core.store.registry import Wanted
from appliance.core.store.stores import Stores
from appliance.core.upstream import same_upstream

AT = "2026-11-27T07:00:00.000Z"
NAME, URL, OTHER = "acme/x", "https://h/acme/x", "https://h/acme/other"
ENTRY = RepoEntry(NAME, URL, None, None, True, "b", AT, registration="1")
REMOVED = replace(ENTRY, removed=True, enabled=False)


def waiting(**changes: Any) -> Pending:
    """A change that waits: a new registration unless told otherwise."""
    document = {
        "name": NAME, "url": URL, "branch": None, "interval": None, "enabled": True, "removed": False,
        "purged": False, "new": True, "again": False, "registration": "9", "at": 2e9,
    }  # fmt: skip
    return Pending(1, document | changes)


KNOWN = KnownEntry(5, asdict(ENTRY))
CHANGED = {"new": False, "interval": 9.0}
GONE = {"new": False, "removed": True, "enabled": False}


@pytest.mark.parametrize(
    ("change", "known", "remote", "verdict"),
    [
        ({}, None, Remote(), Verdict.SEND),
        (GONE, None, Remote(), Verdict.DONE),
        ({}, None, Remote(7, ENTRY), Verdict.DONE),
        ({}, None, Remote(7, replace(ENTRY, branch="dev")), Verdict.DONE),
        ({"branch": "main"}, None, Remote(7, ENTRY), Verdict.OVERTAKEN),
        ({"url": OTHER}, None, Remote(7, ENTRY), Verdict.OVERTAKEN),
        ({}, None, Remote(7, REMOVED), Verdict.SEND),
        ({"again": True}, None, Remote(7, REMOVED), Verdict.OVERTAKEN),
        (CHANGED, KNOWN, Remote(5, ENTRY), Verdict.SEND),
        (CHANGED, KNOWN, Remote(6, replace(ENTRY, interval=3.0)), Verdict.OVERTAKEN),
        (CHANGED, KNOWN, Remote(6, replace(ENTRY, interval=9.0)), Verdict.DONE),
        (CHANGED, KNOWN, Remote(6, replace(ENTRY, interval=3.0, by="a")), Verdict.SEND),
        (CHANGED | {"at": 1.0}, KNOWN, Remote(6, replace(ENTRY, interval=3.0, by="a")), Verdict.OVERTAKEN),
        (CHANGED, KNOWN, Remote(6, REMOVED), Verdict.OVERTAKEN),
        (GONE, KNOWN, Remote(6, REMOVED), Verdict.DONE),
        (GONE | {"purged": True}, KNOWN, Remote(6, REMOVED), Verdict.SEND),
        (GONE, KNOWN, Remote(6, replace(ENTRY, interval=3.0)), Verdict.OVERTAKEN),
    ],
)
def test_the_first_to_reach_the_bucket_wins(
    change: dict[str, Any], known: KnownEntry | None, remote: Remote, verdict: Verdict
) -> None:
    pending = waiting(**change)
    assert judge(pending, known, remote, "a", same_upstream) is verdict
    if verdict is Verdict.OVERTAKEN and remote.entry is not None:
        words = words_of_overtaken(pending, remote.entry)
        assert NAME in words and "on this node was overtaken" in words and f"node {remote.entry.by}" in words


def test_a_registration_lives_until_the_repository_is_added_anew() -> None:
    assert outgoing(waiting(**CHANGED), KNOWN, "a").registration == "1"
    assert outgoing(waiting(), KNOWN, "a").registration == "9"
    assert outgoing(waiting(), KnownEntry(5, asdict(REMOVED)), "a").registration == "9"
    assert is_renewed(KNOWN, replace(ENTRY, registration="2")) and not is_renewed(KNOWN, ENTRY)
    assert not is_renewed(None, ENTRY) and not is_renewed(KnownEntry(5, asdict(REMOVED)), ENTRY)


def test_adding_again_changes_what_it_says_alone() -> None:
    new = replace(ENTRY, by="a", interval=4.0, registration="2")
    assert added(Remote(), new, same_upstream) == new
    assert added(Remote(3, REMOVED), new, same_upstream) == new
    disabled = Remote(3, replace(ENTRY, branch="dev", enabled=False))
    assert added(disabled, new, same_upstream) == replace(ENTRY, branch="dev", interval=4.0, by="a")
    assert added(Remote(3, new), replace(new, interval=None), same_upstream) is None


def test_an_entry_is_under_the_key_of_its_name() -> None:
    assert parse(NAME, data_of(ENTRY)) == ENTRY
    for name, data in ((OTHER, data_of(ENTRY)), (None, data_of(ENTRY)), (NAME, b"{}"), (NAME, None)):
        with pytest.raises(NotOurs):
            parse(name, data)


# -- three nodes -----------------------------------------------------------------------------------------------

NAMES = ("acme/one", "acme/two.x")
URLS = ("https://h/acme/one", "https://h/acme/uno")


class SharedBucket:
    """A bucket in memory, with revisions as NATS gives them; `losing` has the answer to a change lost."""

    def __init__(self) -> None:
        self.made, self.newest, self.losing = 1, 0, False
        self.entries: dict[str, Remote] = {}
        self.history: list[RepoEntry] = []

    def anew(self) -> None:
        """Replaces it by an empty one."""
        self.made, self.newest, self.entries = self.made + 1, 0, {}


class Access:
    """One node's access to it. Stands for RegistryBucket."""

    def __init__(self, bucket: SharedBucket) -> None:
        self.bucket, self.is_up = bucket, True

    async def get(self, name: str) -> Remote:
        """What is there."""
        self._check()
        return self.bucket.entries.get(name, Remote())

    async def put(self, entry: RepoEntry, revision: int) -> int:
        """Compare and set."""
        self._check()
        if self.bucket.entries.get(entry.name, Remote()).revision != revision:
            raise Overtaken
        assert parse(entry.name, data_of(entry)) == entry and key_of(entry.name)
        self.bucket.newest += 1
        self.bucket.history.append(entry)
        self.bucket.entries[entry.name] = Remote(self.bucket.newest, entry)
        if self.bucket.losing:
            self.bucket.losing = False
            raise FleetAway("the answer was lost")
        return self.bucket.newest

    def _check(self) -> None:
        if not self.is_up:
            raise FleetAway("cut off")


@functools.cache
def _empty() -> Path:
    """A database with nothing in it, which takes longer to make than a history to play."""
    directory = tempfile.TemporaryDirectory()
    atexit.register(directory.cleanup)
    path = Path(directory.name) / "empty.db"
    Database(path).close()
    return path


class Node:
    """A node: its database, its side of the registry, and operators. Implements LocalRegistry without any files."""

    def __init__(self, directory: Path, name: str, bucket: SharedBucket) -> None:
        self.name, self.access = name, Access(bucket)
        self.waited: dict[str, Pending] = {}
        self.told: set[int] = set()
        path = directory / f"{name}.db"
        shutil.copyfile(_empty(), path)
        self.stores = Stores.over(Database(path))
        # What is committed to a RAM disk needs no sync.
        with self.stores.database.reading() as connection:
            connection.execute("PRAGMA synchronous = OFF")
        self.start()

    def start(self) -> None:
        """A new `serve`, which knows what is in the database alone."""
        link = SimpleNamespace(node=self.name, is_up=True, on_up=lambda call: None, names=None, config=_Config)
        self.fleet = FleetRegistry(
            cast(FleetLink, link), cast(RegistryBucket, self.access), self.stores.fleet_repos, self, same_upstream
        )

    def is_own(self, name: str) -> bool:
        """No config lists anything."""
        return False

    async def apply(
        self, remote: Remote, known: KnownEntry | None, *, pending: Pending | None, overtaken: str | None
    ) -> bool:
        """As `daemon/fleet_repos`, without files."""
        entry = remote.entry
        assert entry is not None
        if pending is not None and overtaken is not None:
            self.told.add(pending.id)
        settled = Settled(entry.name, remote.known, pending=pending.id if pending else None, overtaken=overtaken)
        if entry.removed:
            self.stores.registry.withdraw(entry.name, settled)
            return True
        found = [repo for repo in self.stores.registry.all() if repo.name == entry.name]
        if found and not same_upstream(found[0].url, entry.url):
            self.stores.registry.withdraw(entry.name, None)
        renew = is_renewed(known, entry) and not (pending is not None and pending.is_new)
        wanted = Wanted(entry.name, entry.url, entry.branch, entry.interval)
        self.stores.registry.follow_fleet(wanted, settled, enabled=entry.enabled, renew=renew)
        return True

    async def finish(self) -> None:
        """Nothing is left to do."""

    async def reconsider(self, known: Mapping[str, KnownEntry]) -> None:
        """What is known is what is registered."""
        here = {repo.name for repo in self.stores.registry.all()}
        assert here >= {name for name, each in known.items() if not each.document["removed"]}

    async def sync(self) -> None:
        """Reads the whole bucket and sends what waits, if it can."""
        if not self.access.is_up:
            return
        bucket = self.access.bucket
        try:
            await self.fleet.take_whole(str(bucket.made), dict(bucket.entries))
            self.fleet._is_read = True
            await self.fleet.tend()
        except FleetAway:
            pass

    async def operate(self, name: str, action: str, url: str, interval: float) -> None:
        """What an operator does; refusals are answers."""
        registry = self.stores.registry
        new = RepoEntry(name, url, None, interval, True, self.name, AT, registration=f"{self.name}{interval}")
        makes: dict[str, Callable[[Remote], RepoEntry | None]] = {
            "add": lambda remote: _add(remote, new),
            "remove": lambda remote: remote.present and replace(remote.present, removed=True, by=self.name),
            "change": lambda remote: remote.present and replace(remote.present, interval=interval, by=self.name),
        }
        try:
            self.fleet._is_read = self.fleet._is_read and self.access.is_up
            claimed = await self.fleet.claim(name, makes[action])
            if claimed is not None:
                return
            if action == "add":
                registry.add(Wanted(name, url, None, interval))
            elif action == "remove":
                registry.remove(name, "")
            else:
                registry.change(name, {"interval": interval})
        except GitmirrorError:
            pass
        self.waited |= self.stores.fleet_repos.pending()

    def table(self) -> dict[str, tuple[Any, ...]]:
        """What is registered."""
        return {repo.name: (repo.url, repo.interval, repo.enabled) for repo in self.stores.registry.all()}


_Config = SimpleNamespace(name="test")


def _add(remote: Remote, wanted: RepoEntry) -> RepoEntry | None:
    if remote.present is not None and not same_upstream(remote.present.url, wanted.url):
        raise Conflict("taken")
    return added(remote, wanted, same_upstream)


_NODE = st.integers(0, 2)
STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from(["add", "add", "remove", "change"]),
            _NODE,
            st.sampled_from(NAMES),
            st.sampled_from(URLS),
            st.integers(1, 50),
        ),
        st.tuples(st.sampled_from(["sync", "cut", "heal", "restart", "lose"]), _NODE),
        st.tuples(st.just("anew"), st.just(0)),
    ),
    max_size=25,
)


async def _play(directory: Path, steps: list[tuple[Any, ...]]) -> None:
    bucket = SharedBucket()
    nodes = [Node(directory, name, bucket) for name in "abc"]
    for node in nodes:
        await node.sync()
    for kind, number, *rest in steps:
        node = nodes[number]
        if kind in ("cut", "heal"):
            node.access.is_up = kind == "heal"
        elif kind == "sync":
            await node.sync()
        elif kind == "restart":
            node.start()
        elif kind == "lose":
            bucket.losing = True
        elif kind == "anew":
            bucket.anew()
        else:
            await node.operate(rest[0], kind, rest[1], float(rest[2]))
    bucket.losing = False
    for node in nodes:
        node.access.is_up = True
    for _ in range(4):
        for node in nodes:
            await node.sync()
    wanted = {
        name: (remote.entry.url, remote.entry.interval, remote.entry.enabled)
        for name, remote in bucket.entries.items()
        if remote.entry is not None and not remote.entry.removed
    }
    for node in nodes:
        assert node.table() == wanted, node.name
        for pending in node.waited.values():
            # What was to be removed from a bucket that is new is not in it.
            is_in = any(
                entry.name == pending.name and is_met(pending, entry, same_upstream) for entry in bucket.history
            )
            assert is_in or pending.id in node.told or pending.document["removed"], "neither sent nor told"
        assert not node.stores.fleet_repos.pending()
        node.stores.database.close()


@pytest.mark.parametrize("examples", [2, pytest.param(75, marks=pytest.mark.slow)])
def test_three_nodes_agree_whatever_happens(examples: int) -> None:
    @settings(
        max_examples=examples, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(STEPS)
    def play(steps: list[tuple[Any, ...]]) -> None:
        with tempfile.TemporaryDirectory() as directory:
            asyncio.run(_play(Path(directory), steps))

    play()
