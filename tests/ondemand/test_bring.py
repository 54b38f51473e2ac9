"""The node itself has an allowed upstream mirrored, by its URL."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from appliance.core.access.allowed import AllowedUpstream, AllowedUpstreams, Coming
from appliance.core.config.credentials import Credentials
from appliance.core.config.repositories import AllowConfig
from appliance.core.daemon.on_demand import OnDemand
from appliance.core.git.command import GitError
from appliance.core.git.keyring import Keyring
from appliance.core.models import RefreshOutcome, Repo

URL = "https://github.com/acme/new"


@dataclass
class Node:
    """The registry, the scheduler and the upstream of a node. `missing` are names that the upstream does not have."""

    is_private: bool = False
    repos: dict[str, Repo] = field(default_factory=dict)
    missing: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    refreshed: list[str] = field(default_factory=list)
    error: str | None = None
    cloned: asyncio.Event = field(default_factory=asyncio.Event)

    def allowed(self) -> AllowedUpstreams:
        """All of one owner."""
        return AllowedUpstreams([AllowConfig(url="https://github.com/acme/*")])

    def is_open(self, upstream: AllowedUpstream) -> bool:
        """Whether guests may have it."""
        return not self.is_private

    def find(self, upstream: AllowedUpstream) -> Repo | None:
        """What is registered."""
        return self.repos.get(upstream.name)

    async def register(self, upstream: AllowedUpstream) -> Repo:
        """Registers anything."""
        repo = Repo(len(self.repos) + 1, upstream.name, upstream.url, None, "allowed", None, True, 0.0)
        return self.repos.setdefault(upstream.name, repo)

    async def run(self, *words: str, **_: Any) -> None:
        """git, which asks the upstream. It waits its turn like the real one."""
        self.asked.append(words[2])
        await asyncio.sleep(0)
        if words[2].rpartition("/")[2] in self.missing:
            raise GitError("git ls-remote failed: not found")

    async def refresh_now(self, repo: Repo) -> RefreshOutcome:
        """The first clone."""
        self.refreshed.append(repo.name)
        await self.cloned.wait()
        return RefreshOutcome(repo.name, 0.0, 0.1, error=self.error)


def on_demand(node: Node, clock: Any = None) -> OnDemand:
    """A part over a node that is made up."""
    alike, more = cast(Any, node), {} if clock is None else {"clock": clock}
    return OnDemand(alike, alike, alike, lambda: Keyring(Credentials(()), {}), Path("/"), lambda: 4, **more)


def test_it_returns_once_the_clone_has_begun() -> None:
    """Twenty at once cause one; a guest that asks meanwhile joins it."""

    async def main() -> None:
        node = Node()
        brings = on_demand(node)
        found = await asyncio.gather(*(brings.bring(f"{URL}.git") for _ in range(20)))
        assert {repo.name for repo in found if repo} == {"acme/new"} and None not in found
        assert node.asked == [URL] and node.refreshed == ["acme/new"]
        assert (await brings.wait("/acme/new", "guest", 0.05))[0] in (Coming.CLONING, Coming.ASKED)
        node.cloned.set()
        assert await brings.bring(URL) == node.repos["acme/new"]
        await brings.stop()

    asyncio.run(main())


def test_what_is_not_allowed_or_does_not_exist() -> None:
    async def main() -> None:
        node = Node(missing={"nothing"})
        brings = on_demand(node)
        for url in ("https://github.com/other/new", "ext::sh", "-x", "https://github.com/acme/../x", "file:///etc/x"):
            assert await brings.bring(url) is None
        assert node.asked == []
        for _ in range(3):
            assert await brings.bring("https://github.com/acme/nothing") is None
        assert node.asked == ["https://github.com/acme/nothing"] and node.repos == {}

    asyncio.run(main())


def test_a_private_one_is_brought_for_the_node_and_not_for_a_guest() -> None:
    """The guest's wish is asked of the upstream all the same, as for a name that does not exist."""

    async def main() -> None:
        node = Node(is_private=True)
        node.cloned.set()
        brings = on_demand(node)
        assert await brings.wait("/acme/other", "guest", 5) == (Coming.NOTHING, None)
        assert node.asked == ["https://github.com/acme/other"] and node.repos == {}
        # A guest cannot make the node believe that it is not there.
        assert await brings.bring("https://github.com/acme/other") is not None
        assert await brings.bring(URL) is not None

    asyncio.run(main())


def test_a_clone_that_fails_is_left_alone_for_longer_each_time() -> None:
    async def main() -> None:
        now = [1000.0]
        node = Node(error="broken")
        node.cloned.set()
        brings = on_demand(node, lambda: now[0])
        for pause in (60, 120, 240):
            assert (await brings.wait("/acme/new", "guest", 5))[0] is Coming.NOTHING
            before = len(node.refreshed)
            now[0] += pause - 1
            assert (await brings.wait("/acme/new", "guest", 5))[0] is Coming.NOTHING
            assert len(node.refreshed) == before
            now[0] += 2
        assert len(node.refreshed) == 3

    asyncio.run(main())


def test_who_waited_in_vain_does_not_wait_again_and_the_wish_goes_on() -> None:
    """Until the node has it, and not for who hangs up."""

    async def main() -> None:
        node = Node()
        brings = on_demand(node)
        coming, upstream = await brings.wait("/acme/new", "guest", 0.1)
        assert coming is Coming.CLONING and upstream is not None and upstream.url == URL
        loop = asyncio.get_running_loop()
        began = loop.time()
        assert (await brings.wait("/acme/new", "guest", 30))[0] is Coming.CLONING
        assert loop.time() - began < 5
        another = asyncio.create_task(brings.wait("/acme/new", "another", 30))
        await asyncio.sleep(0)
        node.cloned.set()
        assert (await another)[0] is Coming.HERE
        assert node.refreshed == ["acme/new"]

    asyncio.run(main())
