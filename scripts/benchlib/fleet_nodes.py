"""Simulated nodes of a fleet in one process: all that they send to NATS and read from it, without git and mirrors.

    python fleet_nodes.py URL FIRST COUNT REPOS INTERVAL PUSHES DIRECTORY

Says `ready` once every node has the registry and has looked at each repository. Then `begin` on stdin forgets what was
counted, and `end` prints it and ends the process.
"""

from __future__ import annotations

import asyncio
import hashlib
import heapq
import itertools
import json
import random
import resource
import sys
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from appliance.core.config.fleet import FleetConfig
from appliance.core.fleet.bucket import RegistryBucket
from appliance.core.fleet.leases import Leases
from appliance.core.fleet.link import FleetLink
from appliance.core.fleet.messages import RepoEntry, TurnRow
from appliance.core.fleet.news import NewsBoard, SharedLooks, Sharing
from appliance.core.fleet.news_desk import NewsDesk
from appliance.core.fleet.nodes import Described, Nodes
from appliance.core.fleet.objects import ObjectShelf
from appliance.core.fleet.wire import read, write
from appliance.core.models import Health, Repo
from appliance.core.refresh.runs import MirrorFacts, RefreshRun

BUNDLE = 3000
"""Bytes of the bundle of a turn that changed a few files."""
LOOKS_AT_ONCE = 8
"""As many lanes as a node's scheduler has."""


def repos_of(count: int) -> list[Repo]:
    """The repositories of the simulated fleet."""
    return [
        Repo(number, f"acme/repo-{number}", f"https://git.example/acme/repo-{number}", None, "cli", None, True, 0.0)
        for number in range(1, count + 1)
    ]


def entry_of(repo: Repo) -> RepoEntry:
    """How a repository stands in the registry."""
    return RepoEntry(repo.name, repo.url, None, None, True, "node-0", "2026-01-01T00:00:00Z")


@dataclass
class Counts:
    """What the nodes of this process did."""

    looks: int = 0
    copies: int = 0
    heard: int = 0
    pushed: int = 0
    rows: int = 0
    delays: list[float] = field(default_factory=list)
    """Seconds from when a turn was taken until a node had its row, of every tenth."""
    late_pushes: int = 0


class Upstream:
    """Finds at each look what the version of a repository says; a look takes a moment."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts

    async def refresh(self, run: RefreshRun) -> MirrorFacts:
        """One look."""
        self._counts.looks += 1
        await asyncio.sleep(0.05)
        return MirrorFacts(None, "refs/heads/main", 1, None)


@dataclass(frozen=True)
class Own:
    """The digest of a mirror that always is what the upstream is."""

    digest: str
    facts: MirrorFacts


class Mirrors:
    """In place of a node's mirrors: all have what the upstream has."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts

    async def own(self, repo: Repo) -> Own:
        """What a mirror has."""
        digest = hashlib.sha256(repo.name.encode()).hexdigest()
        return Own(digest, MirrorFacts(None, "refs/heads/main", 1, None))

    async def copy(self, run: RefreshRun, node_url: str, digest: str) -> MirrorFacts:
        """A fetch from a neighbour."""
        self._counts.copies += 1
        return MirrorFacts(None, "refs/heads/main", 1, None)


class Scheduler:
    """Looks at each repository when it is due or when there is news of it, as a node's scheduler does."""

    def __init__(self, repos: list[Repo], interval: float, counts: Counts) -> None:
        self.source: SharedLooks | None = None
        self.first = asyncio.Event()
        self._interval = interval
        self._counts = counts
        self._repos = {repo.id: repo for repo in repos}
        now = time.monotonic()
        self._due = {repo.id: now + random.random() * interval for repo in repos}
        self._heap = [(due, repo_id) for repo_id, due in self._due.items()]
        heapq.heapify(self._heap)
        self._left = set(self._due)
        self._wake = asyncio.Event()
        self._asked: dict[int, asyncio.Future[None]] = {}

    def hear(self, repo: Repo) -> None:
        """There is news of a repository."""
        self._counts.heard += 1
        self._set(repo.id, time.monotonic())

    async def refresh_now(self, repo: Repo, *, insist: bool = False) -> None:
        """A look that another node asks for."""
        await self._look(repo)

    def health(self, repo_id: int) -> Health:
        """That of a mirror: no look fails here."""
        return Health()

    async def run(self) -> None:
        """One of the lanes."""
        while True:
            while self._heap and self._due[self._heap[0][1]] != self._heap[0][0]:
                heapq.heappop(self._heap)
            wait = self._heap[0][0] - time.monotonic() if self._heap else 1.0
            if wait > 0:
                await asyncio.sleep(min(wait, 0.1))
                continue
            _, repo_id = heapq.heappop(self._heap)
            self._due[repo_id] = float("inf")
            await self._look(self._repos[repo_id])

    async def _look(self, repo: Repo) -> None:
        assert self.source is not None
        facts = await self.source.refresh(RefreshRun(repo))
        after = self._interval if facts.heard is None else facts.heard.next_in * 1.1 + 2
        if repo.id in self._left:
            # Nodes that have run for a while look at different times, though here all begin at one.
            after *= random.random()
        self._set(repo.id, time.monotonic() + after)
        self._left.discard(repo.id)
        if not self._left:
            self.first.set()

    def _set(self, repo_id: int, due: float) -> None:
        self._due[repo_id] = due
        heapq.heappush(self._heap, (due, repo_id))


class Node:
    """One node: the real connection, registry, entries of nodes, leases, news, turns that go out and come in."""

    def __init__(self, url: str, number: int, repos: list[Repo], interval: float, place: Path, counts: Counts) -> None:
        self.name = f"node-{number}"
        self.link = FleetLink(FleetConfig(servers=(url,), name="bench", node=self.name))
        self._repos = repos
        self._counts = counts
        self._nodes = Nodes(
            self.link, lambda: Described(f"git://{self.name}.example", len(repos), 0, 0, 0.0, {}, 0), machine=self.name
        )
        self._shelf = ObjectShelf(self.link)
        self._bundle = place / f"{self.name}.bundle"
        self.scheduler = Scheduler(repos, interval, counts)
        self.registry = asyncio.Event()
        sharing = Sharing(lambda repo: None, lambda: interval)
        board = NewsBoard()
        self.scheduler.source = SharedLooks(
            self.link, Leases(self.link), board, sharing, self._nodes.url_of, Upstream(counts), Mirrors(counts),  # type: ignore[arg-type]
            lambda: 30.0,
        )  # fmt: skip
        by_name = {repo.name: repo for repo in repos}
        self._tasks: set[asyncio.Task[None]] = set()
        self._desk = NewsDesk(self.link, board, sharing, self.scheduler, by_name.__getitem__, self._begin)  # type: ignore[arg-type]

    def _begin(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            loops = (self.link.run, self._nodes.run, self._desk.run, self._follow_registry, self._read_turns)
            for loop in (*loops, *[self.scheduler.run] * LOOKS_AT_ONCE):
                group.create_task(loop())

    async def _follow_registry(self) -> None:
        await self.link.wait_up()
        async with RegistryBucket(self.link).watch() as watcher:
            found, _ = await watcher.whole()
            assert len(found) >= len(self._repos)
            self.registry.set()
            while True:
                await watcher.updates(5.0)

    async def _read_turns(self) -> None:
        await self.link.wait_up()
        names = self.link.names
        turns = await self.link.context.subscribe(names.turns_of("*"), stream=names.turns, ordered_consumer=True)
        async for message in turns.messages:
            row = read(message.data, TurnRow)
            self._counts.rows += 1
            if row.id % 10 == 0:
                self._counts.delays.append(time.time() - float(row.notes["at"]))

    async def push(self, number: int) -> None:
        """Takes a turn: its bundle and its row go out."""
        began = time.time()
        uid = hashlib.sha256(f"{self.name} {number}".encode()).hexdigest()
        bundle = random.randbytes(BUNDLE)
        self._bundle.write_bytes(bundle)
        await self._shelf.put(uid, self._bundle)
        oid = uid[:40]
        row = TurnRow(
            uid=uid, node=self.name, id=number, repo=random.choice(self._repos).name, session=f"s{number % 500}",
            commit=oid, old=None, base=oid, at="2026-01-01T00:00:00.000Z", subject="What the agent did in this turn",
            commits=1, files_changed=3, insertions=40, deletions=12, client="10.0.0.1:40000", guest=None, bytes=BUNDLE,
            bundle=uid, bundle_size=BUNDLE, bundle_sha256=hashlib.sha256(bundle).hexdigest(), needs=(oid,),
            notes={"at": f"{began}"},
        )  # fmt: skip
        await self.link.call(lambda context: context.publish(self.link.names.turns_of(self.name), write(row)))
        self._counts.pushed += 1


async def push_often(nodes: list[Node], rate: float, counts: Counts) -> None:
    """Pushes so many turns a second, each to the next node."""
    if not rate:
        return
    due = time.monotonic()
    waiting: set[asyncio.Task[None]] = set()
    for number in itertools.count(1):
        due += 1 / rate
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        if len(waiting) >= len(nodes):
            # Every node is busy: this push would have to wait.
            counts.late_pushes += 1
            continue
        task = asyncio.create_task(nodes[number % len(nodes)].push(number))
        waiting.add(task)
        task.add_done_callback(waiting.discard)


async def main(url: str, first: int, count: int, repos: int, interval: float, pushes: float, place: Path) -> None:
    """Runs the nodes until told to end."""
    counts = Counts()
    registered = repos_of(repos)
    nodes = [Node(url, first + number, registered, interval, place, counts) for number in range(count)]
    running = [asyncio.create_task(node.run()) for node in nodes]
    for node in nodes:
        await node.registry.wait()
        await node.scheduler.first.wait()
    running.append(asyncio.create_task(push_often(nodes, pushes, counts)))
    print("ready", flush=True)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while (order := (await reader.readline()).strip()) == b"begin":
        for name, value in vars(replace(Counts(), delays=[])).items():
            setattr(counts, name, value)
        used = _processor_seconds()
    broken = [repr(task.exception()) for task in running if task.done() and not task.cancelled()]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    figures = vars(counts) | {
        "cpu": _processor_seconds() - used,
        "rss_kib": memory,
        "broken": [repr(e) for e in broken],
    }
    print(json.dumps(figures), flush=True)
    assert order == b"end"
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    url, first, count, repos, interval, pushes, place = sys.argv[1:]
    asyncio.run(main(url, int(first), int(count), int(repos), float(interval), float(pushes), Path(place)))
