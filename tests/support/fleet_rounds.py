"""Rounds of work on a fleet in which something is killed, frozen, or loses its disk, and what must hold after them.

`Storm` has the nodes, the NATS servers and the upstream. Each round starts a few `Work`s on random nodes and does one
`Fault` to a random node or server meanwhile. `Storm.heal` ends every fault and checks that the nodes agree. What is
chosen depends on the seed alone; when each thing happens, on the machine.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from appliance.core.errors import GitmirrorError
from tests.support.fleet import TestFleet
from tests.support.fleet_users import Pushing, ask, send_webhook, sessions_of, webhook_settings
from tests.support.generate import add_commit
from tests.support.gitutil import read_ref, wait_until
from tests.support.nats import NatsCluster, NatsServer
from tests.support.netns import Cable
from tests.support.serve import CommandFailed, Serve
from tests.support.upstream import GitDaemonUpstream

RECORDED = ("acme/one", "acme/two")
"""Repositories that turns are recorded in; they are never removed."""
FLEETING = ("acme/x", "acme/y", "acme/z")
"""Repositories that are added, disabled, enabled and removed."""
KEPT, DROPPED = ("s0", "s1", "s2"), ("d0", "d1")
"""Sessions of each repository; those in DROPPED are dropped now and then."""
AGREE_WITHIN = 90.0
"""Seconds after a heal in which the nodes must agree: NATS takes ten to choose a leader, and several to catch up."""
AWAY = (GitmirrorError, OSError, CommandFailed)
"""What somebody who asks a node that is being killed may see."""


@dataclass
class Told:
    """A turn of which a guest was told that it was recorded; `began` is when its push did."""

    node: str
    repo: str
    session: str
    commit: str
    began: float


@dataclass
class Dropped:
    """A session that `node` was asked to drop between two moments."""

    node: str
    repo: str
    session: str
    began: float
    ended: float
    done: bool


@dataclass
class Lost:
    """The disk of `node` was removed at `until`. What it took since `since`, when all agreed, it may have had alone."""

    node: str
    since: float
    until: float

    def covers(self, node: str, at: float) -> bool:
        """Whether something that a node did at a time was perhaps on that disk alone."""
        return node == self.node and self.since < at < self.until


@dataclass
class Ledger:
    """What users were told since the beginning."""

    turns: list[Told] = field(default_factory=list)
    drops: list[Dropped] = field(default_factory=list)
    repos: dict[str, tuple[str, float]] = field(default_factory=dict)
    """Names that were registered once and never removed, with the node that said so, and when."""
    lost: list[Lost] = field(default_factory=list)

    def may_be_lost(self, node: str, at: float) -> bool:
        """Whether what a node did at a time was perhaps on a disk alone that was removed since."""
        return any(each.covers(node, at) for each in self.lost)


class Storm:
    """A fleet of three nodes and three NATS servers, and everything that is done to it. A context manager.

    `durability` is that of the recorded turns of each node, by its name. With `cable`, the nodes `far` are at its other
    end.
    """

    def __init__(
        self,
        place: Path,
        source: Path,
        seed: int,
        durability: Mapping[str, str],
        cable: Cable | None = None,
        far: Sequence[str] = (),
    ) -> None:
        self.rng = random.Random(seed)
        self.seed, self.source = seed, source
        self.durability = dict(durability)
        self.nodes = tuple(durability)
        self.cable, self.far = cable, far
        self.ledger = Ledger()
        self.healed_at = 0.0
        self.round = 0
        self.faults: dict[str, int] = {}
        self._host = cable.outside if cable else "127.0.0.1"
        self._count = 0
        self._lock = threading.Lock()
        self._stack = contextlib.ExitStack()
        self._running: list[Future[None]] = []
        self._place = place
        self._urls: dict[str, tuple[str, str]] = {}

    def __enter__(self) -> Storm:
        with contextlib.ExitStack() as stack:
            place, host = self._place, self._host
            self.upstream = stack.enter_context(GitDaemonUpstream(place / "upstream", host=host))
            for name in (*RECORDED, *FLEETING):
                self.upstream.add(name, self.source)
            self.pushing = Pushing(place / "pushing.git", self.source)
            self.nats = stack.enter_context(NatsCluster(place / "nats", 3, host=host))
            self.fleet = stack.enter_context(TestFleet(place, self.nats, ()))
            self._pool = stack.enter_context(ThreadPoolExecutor(6))
            refresh = {"interval": "2s", **webhook_settings(place)}
            for name in self.nodes:
                own = self.cable.inside if self.cable and name in self.far else host
                serve = self.fleet.make(
                    name,
                    refresh=refresh,
                    fleet={"durability": self.durability[name], "sync_timeout": "5s"},
                    recording={"max_new_sessions": 10**6, "max_turns": 10**6},
                    options=["--git", f"{own}:0", "--http", f"{own}:0", "--admin", f"{own}:0"],
                )
                if self.cable and name in self.far:
                    serve.starter = list(self.cable.enter)
                self.fleet.nodes[name] = serve
                serve.start()
                serve.keep_ports()
                self._urls[name] = serve.git_url, serve.admin_url
            for name in RECORDED:
                self.fleet[self.nodes[0]].cli("add-repo", self.upstream.url(name), timeout=90)
                self.fleet.wait_all(lambda serve, name=name: name in repos_of(serve), f"{name} is there")  # type: ignore[misc]
                self.fleet.wait_all(lambda serve, name=name: serve.mirror(name).exists(), f"{name} is cloned")  # type: ignore[misc]
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    # Work

    def work(self, count: int = 4, nodes: Sequence[str] = ()) -> None:
        """Starts so many random pieces of work, on any node or on these."""
        kinds: list[tuple[int, Callable[[], Callable[[], None]]]] = [
            (10, self._plan_push),
            (3, self._plan_registration),
            (2, self._plan_webhook),
            (1, self._plan_drop),
        ]
        for _ in range(count):
            [plan] = self.rng.choices([each for _, each in kinds], [weight for weight, _ in kinds])
            self._nodes = nodes or self.nodes
            self._running.append(self._pool.submit(plan()))

    def _node(self) -> str:
        return self.rng.choice(self._nodes)

    def _plan_push(self) -> Callable[[], None]:
        node, repo, session = self._node(), self.rng.choice(RECORDED), self.rng.choice((*KEPT, *KEPT, *DROPPED))
        self._count += 1
        message, continues = f"{repo} {session} {self._count}", self.rng.random() < 0.5

        def push() -> None:
            with self._lock:
                before = [turn.commit for turn in self.ledger.turns if (turn.repo, turn.session) == (repo, session)]
            commit = self.pushing.commit(message, before[-1] if before and continues else None)
            enter = self.cable.enter if self.cable and node in self.far else ()
            began = time.monotonic()
            done, _ = self.pushing.push(self._urls[node][0], repo, session, commit, enter=enter)
            if done:
                with self._lock:
                    self.ledger.turns.append(Told(node, repo, session, commit, began))

        return push

    def _plan_registration(self) -> Callable[[], None]:
        node, name = self._node(), self.rng.choice(FLEETING)
        kind = self.rng.choice(("add", "add", "once", "disable", "enable", "remove"))
        if kind == "once":
            self._count += 1
            name = f"once/r{self._count}"
            self.upstream.add(name, self.source)

        def register() -> None:
            with contextlib.suppress(*AWAY):
                if kind in ("add", "once"):
                    ask(self.fleet[node], "POST", "repos", {"url": self.upstream.url(name), "wait": False})
                    if kind == "once":
                        with self._lock:
                            self.ledger.repos[name] = (node, time.monotonic())
                elif kind == "remove":
                    ask(self.fleet[node], "DELETE", f"repos/{name}", purge="true")
                else:
                    ask(self.fleet[node], "PATCH", f"repos/{name}", {"enabled": kind == "enable"})

        return register

    def _plan_webhook(self) -> Callable[[], None]:
        # The upstream is not at the far end of the cable: once that is cut, it would only wait.
        node = self.rng.choice([each for each in self._nodes if each not in self.far])
        name = self.rng.choice(RECORDED)
        self._count += 1
        file = {f"upstream-{self._count}.txt": "x\n"}

        def tell() -> None:
            with self._lock:
                tip = add_commit(self.upstream.path(name), "main", file)
            with contextlib.suppress(*AWAY):
                send_webhook(self._urls[node][1], name, self.upstream.url(name), ref="refs/heads/main", after=tip)

        return tell

    def _plan_drop(self) -> Callable[[], None]:
        node, repo, session = self._node(), self.rng.choice(RECORDED), self.rng.choice(DROPPED)

        def drop() -> None:
            began, done = time.monotonic(), False
            with contextlib.suppress(*AWAY):
                ask(self.fleet[node], "DELETE", f"repos/{repo}/sessions/{session}")
                done = True
            with self._lock:
                self.ledger.drops.append(Dropped(node, repo, session, began, time.monotonic(), done))

        return drop

    # Faults

    def fault(self, kind: str, node: str, server: NatsServer) -> None:
        """Does one thing to a node or a server, at a random moment, and ends it."""
        self.faults[kind] = self.faults.get(kind, 0) + 1
        time.sleep(self.rng.uniform(0.0, 0.6))
        serve, length = self.fleet[node], self.rng.uniform(0.3, 2.5)
        match kind:
            case "kill-node":
                serve.kill()
                self._start(serve)
            case "kill-server":
                server.stop()
                time.sleep(length / 2)
                server.start()
            case "freeze-node":
                serve.signal(signal.SIGSTOP)
                time.sleep(length)
                serve.signal(signal.SIGCONT)
            case "freeze-server":
                server.freeze()
                time.sleep(length)
                server.thaw()
            case _:
                self._replace(node)

    def _start(self, serve: Serve) -> None:
        serve.start(timeout=90)

    def _replace(self, node: str) -> None:
        """The node dies with its disk, and another of its name is made of what the fleet has."""
        serve = self.fleet[node]
        serve.kill()
        wait_until(lambda: not serve.processes(), message=f"all of {node} ended")
        self.ledger.lost.append(Lost(node, self.healed_at, time.monotonic()))
        shutil.rmtree(serve.state)

        said = ""

        def restored() -> bool:
            nonlocal said
            done = serve.cli("restore", "--from-fleet", node, check=False, timeout=90)
            said = done.stderr
            return done.returncode == 0

        try:
            wait_until(restored, timeout=60, interval=1, message=f"{node} is restored")
        except AssertionError as error:
            raise AssertionError(f"{error}: {said}") from None
        self._start(serve)

    # What must hold

    def settle(self) -> None:
        """Waits until all work that was started has ended, and raises what went wrong in it."""
        running, self._running = self._running, []
        for each in running:
            each.result(timeout=120)

    def heal(self) -> None:
        """Waits until everything has ended, and holds the nodes to what users were told."""
        self.settle()
        wait_until(self._agreed, timeout=AGREE_WITHIN, interval=1, message="the nodes agree")
        sessions = sessions_of(self.fleet[self.nodes[0]])
        self._hold_turns(sessions)
        registered = repos_of(self.fleet[self.nodes[0]])
        for name, told in self.ledger.repos.items():
            assert name in registered or self.ledger.may_be_lost(*told), f"{name} was registered by {told} and is gone"
        for node in self.nodes:
            # With --fleet it verifies the chain, too.
            self.fleet[node].here("audit", "verify", "--fleet")
        self.healed_at = time.monotonic()

    def disagreement(self) -> str:
        """What the nodes disagree on, as a text; empty if they agree."""
        for name in RECORDED:
            tip = read_ref(self.upstream.path(name), "refs/heads/main")
            for node in self.nodes:
                if read_ref(self.fleet[node].mirror(name), "refs/heads/main") != tip:
                    return f"{name} is not up to date on {node}"
        # The turns of each session cost a request for each, so they are asked for once all else is the same.
        views: tuple[Callable[[Serve], dict[Any, Any]], ...] = (repos_of, listed_by, sessions_of)
        for seen in views:
            found = {node: seen(self.fleet[node]) for node in self.nodes}
            for node in self.nodes[1:]:
                if found[node] != found[self.nodes[0]]:
                    return f"{self.nodes[0]} has {found[self.nodes[0]]},\n{node} has {found[node]}"
        lacking = [turn for turn in self._must_be_there() if not self._has(found[self.nodes[0]], turn)]
        return f"lacking on {self.nodes[0]}: {lacking}" if lacking else ""

    def _agreed(self) -> bool:
        try:
            return not self.disagreement()
        except AWAY:
            return False

    def _must_be_there(self) -> list[Told]:
        """The turns that were told, but for those that a drop may have meant or a removed disk alone had."""
        return [
            turn
            for turn in self.ledger.turns
            if not (self.durability[turn.node] == "async" and self.ledger.may_be_lost(turn.node, turn.began))
            and not any(
                (drop.repo, drop.session) == (turn.repo, turn.session) and drop.ended > turn.began
                for drop in self.ledger.drops
            )
        ]

    def _hold_turns(self, sessions: dict[tuple[str, str], list[str]]) -> None:
        for turn in self._must_be_there():
            assert self._has(sessions, turn), f"{turn} was told and is missing"
        for drop in self.ledger.drops:
            # A drop at a node that had every turn of before the last heal ends those.
            if drop.done and drop.began > self.healed_at and not self.ledger.may_be_lost(drop.node, drop.began):
                for turn in self.ledger.turns:
                    if (turn.repo, turn.session) == (drop.repo, drop.session) and turn.began < self.healed_at:
                        assert not self._has(sessions, turn), f"{turn} was dropped by {drop} and is there"
        told = [turn.commit for turn in self.ledger.turns]
        for session, commits in sessions.items():
            assert len(set(commits)) == len(commits), f"a turn of {session} is there twice: {commits}"
        assert len(set(told)) == len(told)

    @staticmethod
    def _has(sessions: dict[tuple[str, str], list[str]], turn: Told) -> bool:
        return turn.commit in sessions.get((turn.repo, turn.session), [])

    def bring_everywhere(self, place: Path) -> None:
        """Checks out the last turn of every session on a node, whoever took it: each node has its share of them."""
        for number, node in enumerate(self.nodes):
            for repo, session in sorted(sessions_of(self.fleet[node]))[number :: len(self.nodes)]:
                dest = place / node / repo / session
                dest.parent.mkdir(parents=True, exist_ok=True)
                self.fleet[node].here("session", "checkout", repo, session, str(dest))
                assert (dest / "turn.txt").read_text().startswith(f"{repo} {session} ")

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Adds the seed, the round and the ends of all logs to what fails."""
        try:
            yield
        except Exception as error:
            with contextlib.suppress(Exception):
                error.add_note(self.disagreement()[-6000:])
            tails = "".join(
                f"\n== {name}\n{text[-2500:]}"
                for name, text in [
                    *((f"node {node}", serve.log()) for node, serve in self.fleet.nodes.items()),
                    *((f"server {server.name}", server.log) for server in self.nats.servers),
                ]
            )
            error.add_note(f"seed {self.seed}, round {self.round}, {self.durability}, {self.faults}{tails}")
            raise


def listed_by(serve: Serve) -> dict[tuple[str, str], tuple[int, str]]:
    """How many turns every session that a node lists has, and its tip."""
    found = ask(serve, "GET", "sessions", limit=1000)["items"]
    return {(each["repo"], each["session"]): (each["turns"], each["tip"]) for each in found}


def repos_of(serve: Serve) -> dict[str, tuple[object, ...]]:
    """What a node has registered: the URL of each name, its branch and interval, and whether it is enabled.

    The branch is the one that the mirror follows. A node that was made anew has no mirror of what is disabled.
    """
    found = ask(serve, "GET", "repos", limit=1000)["items"]
    return {
        each["name"]: (each["url"], each["branch"] if each["enabled"] else None, each["interval"], each["enabled"])
        for each in found
    }
