"""The stage: one `serve`, the upstreams that it mirrors, and the guests and agents that use it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import http.client
import itertools
import json
import logging
import os
import random
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from appliance.core.api.client import QUICK, call
from appliance.core.errors import GitmirrorError
from appliance.core.process.children import Child
from appliance.demo.agents import Agent
from appliance.demo.content import read_projects
from appliance.demo.guests import DemoGuest
from appliance.demo.history import ProjectHistory
from appliance.demo.place import DemoPlace, Tenancy
from appliance.demo.program import serve_command
from appliance.demo.roads import GuestRoad
from appliance.demo.upstreams import Upstreams

log = logging.getLogger(__name__)

GUESTS = 5
"""Known guests, `vm-1` and so on; one more is slow, and one is unknown."""
SLOW = 192 * 1024
"""Bytes a second of the slow guest."""
HURRIED = ((4.0, 0.2), (20.0, 0.5))
"""At the beginning somebody is looking: until so many seconds have passed, pauses are this much shorter."""
TIDY_AFTER = 200
"""Commits of an upstream between two packings."""
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "GIT_EXEC_PATH")
_READY = re.compile(r"^ready (git://\S+) (http://\S+) admin (http://\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class RunningDemo:
    """A demo that runs: its place, and the URLs of its node."""

    place: DemoPlace
    git: str
    http: str
    admin: str


class Stage:
    """Plays in the place of `tenancy`. The same `seed` gives the same upstreams and the same order of what happens."""

    def __init__(self, tenancy: Tenancy, seed: int) -> None:
        self.place = tenancy.place
        self.projects = read_projects()
        self._children = tenancy.children
        self._random = random.Random(seed)
        self._histories = {project.name: ProjectHistory(project, seed) for project in self.projects}
        self._env = self._environment()
        self._upstreams = Upstreams(self.place.upstreams, self._children, self._env)
        self._moving = asyncio.Lock()
        self._secret = secrets.token_hex(16)
        self._guests: list[DemoGuest] = []
        self._serve: Child | None = None
        self._running: RunningDemo | None = None
        self._began = time.monotonic()

    # From nothing to a node that serves

    async def open(self) -> RunningDemo:
        """Starts everything, and returns once guests are accepted. Raises GitmirrorError, OSError."""
        await self._upstreams.open()
        self._configure()
        self._serve = self._start_serve()
        # `serve` asks the upstreams as soon as it is there, and they are made in less time than it needs to start.
        now = time.time()
        pasts = {name: history.past(now) for name, history in self._histories.items()}
        await asyncio.gather(*(self._upstreams.create(name, past) for name, past in pasts.items()))
        self._running = running = await self._until_ready()
        return running

    def _environment(self) -> dict[str, str]:
        passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        return passed | {
            "HOME": str(self.place.home),
            "XDG_CONFIG_HOME": str(self.place.home),
            "TMPDIR": str(self.place.scratch),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "GITMIRROR_DRIVES": "",
        }

    def _configure(self) -> None:
        secret = self.place.root / "webhook-secret"
        secret.write_text(self._secret)
        lines = [
            "# The configuration of a demo.",
            '[serve]\ngit = "127.0.0.1:0"\nhttp = "127.0.0.1:0"\nadmin = "127.0.0.1:0"\ndrain_timeout = "1s"',
            f'[refresh]\ninterval = "15s"\nstale_after = "1m"\nwebhook_secret_file = {json.dumps(str(secret))}',
            '[recording]\nretention = "30m"',
            f'[backup]\nto = {json.dumps(str(self.place.root / "backup"))}\nevery = "1m"',
        ]
        for project in self.projects:
            lines.append(f"[[repos]]\nurl = {json.dumps(self._upstreams.url(project.name))}")
        self.place.config.write_text("\n".join(lines) + "\n")

    def _start_serve(self) -> Child:
        argv, extra = serve_command(self.place)
        with self.place.log.open("ab") as log_file, (self.place.root / "serve.out").open("wb") as output:
            env = {**self._env, **extra}
            return self._children.start(argv, env=env, cwd=self.place.root, stdout=output, stderr=log_file)

    async def _until_ready(self) -> RunningDemo:
        assert self._serve is not None
        while True:
            if found := _READY.search((self.place.root / "serve.out").read_text()):
                return RunningDemo(self.place, *found.groups())
            if self._serve.process.returncode is not None:
                lines = self.place.log.read_text(errors="replace").strip().splitlines()
                raise GitmirrorError("the demo's serve does not start", hint=lines[-1] if lines else "")
            await asyncio.sleep(0.02)

    async def close(self) -> None:
        """Ends `serve`, and stops listening."""
        if self._serve is not None:
            # Not by TERM: nothing of what it would save is kept.
            self._serve.signal(9)
            await self._serve.wait()
        for guest in self._guests:
            guest.road.close()
        self._upstreams.close()

    # What happens

    async def play(self) -> None:
        """Lets everything happen until it is cancelled. Raises GitmirrorError if `serve` ends."""
        assert self._running is not None and self._serve is not None
        await self._until_cloned()
        await self._invite(self._running)
        self._began = time.monotonic()
        agents = [
            Agent(project, project.session, self._random.sample(self._guests[:GUESTS], 2), self._think)
            for project in self.projects
            if project.session is not None
        ]
        self._random.shuffle(agents)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch_serve())
            group.create_task(self._commit())
            group.create_task(self._fail([project.name for project in self.projects if project.is_flaky]))
            group.create_task(self._hydrate())
            group.create_task(self._hydrate_slowly())
            group.create_task(self._push_wrongly())
            for first in range(2):
                group.create_task(self._work(agents[first::2]))

    async def _watch_serve(self) -> None:
        assert self._serve is not None
        raise GitmirrorError(f"the demo's serve ended with code {await self._serve.wait()}")

    async def _ask(self, method: str, path: str, body: Mapping[str, object] | None = None) -> object:
        return await asyncio.to_thread(call, self.place.layout, method, path, body, timeout=QUICK)

    async def _until_cloned(self) -> None:
        while True:
            status = await self._ask("GET", "/v1/status")
            assert isinstance(status, dict)
            if all(repo["tip"] for repo in status["repos"]):
                return
            await asyncio.sleep(0.1)

    async def _invite(self, running: RunningDemo) -> None:
        """Makes the guests known, and gives each a disk, a road and the kit."""
        kit = self.place.root / "guest.sh"
        kit.write_text(str(await self._ask("GET", "/v1/guest-kit")))
        names = [*(f"vm-{number}" for number in range(1, GUESTS + 1)), "slow-vm", ""]
        for number, name in enumerate(names):
            address = f"127.0.0.{number + 11}"
            road = GuestRoad(address, SLOW if "slow" in name else None)
            await road.open(running.git, running.http)
            disk = self.place.guests / (name or "unknown")
            disk.mkdir()
            if name:
                await self._ask("POST", "/v1/guests", {"name": name, "address": address, "sessions": ["*"]})
            self._guests.append(DemoGuest(name, road, disk, kit, self._children, self._env))

    async def _rest(self, low: float, high: float) -> None:
        """Waits for a random time between two numbers of seconds, and less at the beginning."""
        age = time.monotonic() - self._began
        pace = next((pace for until, pace in HURRIED if age < until), 1.0)
        await asyncio.sleep(self._random.uniform(low, high) * pace)

    async def _think(self) -> None:
        await self._rest(5, 11)

    async def _commit(self) -> None:
        """Moves the upstreams."""
        names = [project.name for project in self.projects]
        weights = [4 if name.endswith(("search", "checkout")) else 1 for name in names]
        for number in itertools.count(1):
            await self._move(*self._random.choices(names, weights))
            if number % TIDY_AFTER == 0:
                for name in names:
                    await self._upstreams.tidy(name)
            await self._rest(4, 9)

    async def _move(self, name: str) -> None:
        """Adds a commit to an upstream, and tells the node by webhook."""
        async with self._moving:
            oid = await self._upstreams.commit(name, self._histories[name].next(time.time()))
        with contextlib.suppress(OSError, http.client.HTTPException):
            await asyncio.to_thread(self._tell, name, oid)

    def _tell(self, name: str, oid: str) -> None:
        assert self._running is not None
        parts = urlsplit(self._running.admin)
        body = json.dumps(
            {"ref": "refs/heads/main", "after": oid, "repository": {"clone_url": self._upstreams.url(name)}}
        ).encode()
        mac = hmac.new(self._secret.encode(), body, hashlib.sha256).hexdigest()
        headers = {"Content-Type": "application/json", "X-GitHub-Event": "push", "X-Hub-Signature-256": f"sha256={mac}"}
        exchange = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=QUICK)
        with contextlib.closing(exchange):
            exchange.request("POST", "/hooks/github", body, headers)
            exchange.getresponse().read()

    async def _fail(self, names: list[str]) -> None:
        """Lets the flaky upstreams fail when something has moved, and recover for a while."""
        for name in itertools.cycle(names):
            self._upstreams.down.add(name)
            await self._move(name)
            await asyncio.sleep(self._random.uniform(60, 90))
            self._upstreams.down.remove(name)
            await self._move(name)
            await asyncio.sleep(self._random.uniform(20, 30))

    async def _hydrate(self) -> None:
        """Guests get a workspace, two thirds by tar, and give it up again."""
        fast = [guest for guest in self._guests if guest.road.pace is None]
        for number in itertools.count():
            guest, project = self._random.choice(fast), self._random.choice(self.projects)
            workspace = await guest.hydrate(project.name, by_git=number % 3 == 1)
            if workspace is not None:
                guest.clear(workspace)
            await self._rest(3, 7)

    async def _hydrate_slowly(self) -> None:
        """The slow guest gets the largest repository."""
        [guest] = [guest for guest in self._guests if guest.road.pace is not None]
        largest = max(self.projects, key=lambda project: project.pictures)
        while True:
            workspace = await guest.hydrate(largest.name)
            if workspace is not None:
                guest.clear(workspace)
            await self._rest(30, 60)

    async def _push_wrongly(self) -> None:
        """A guest pushes where it may not: to a branch, or to a tag."""
        project, guest = self.projects[0], self._guests[0]
        for ref in itertools.cycle(("refs/heads/hotfix", "refs/tags/v2.0")):
            workspace = await guest.hydrate(project.name, by_git=True)
            if workspace is not None:
                await guest.push(project.name, workspace, ref)
                guest.clear(workspace)
            await self._rest(60, 120)

    async def _work(self, agents: list[Agent]) -> None:
        for agent in itertools.cycle(agents):
            await agent.work()
            await self._rest(4, 10)
