"""What runs in the background ends when it is told to, whatever NATS sends at that moment."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

from appliance.core.config.fleet import FleetConfig
from appliance.core.fleet.bucket import RegistryWatcher
from appliance.core.fleet.link import FleetLink
from appliance.core.fleet.names import FleetNames
from appliance.core.fleet.nodes import Described, Nodes
from appliance.core.fleet.registry_rules import Remote
from appliance.core.process.cancellable import cancellable


class DeafWatcher:
    """A watcher of nats-py whose answer comes together with a cancellation, so that nobody hears of that."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.was_cancelled = False

    async def updates(self, timeout: float = 5.0) -> None:
        """Nothing, when it is cancelled for the first time."""
        try:
            self.asked.set()
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            if self.was_cancelled:
                raise
            self.was_cancelled = True

    async def stop(self) -> None:
        """Does nothing."""


class UpLink(FleetLink):
    """A connection that is up, to nothing."""

    def __init__(self, watcher: DeafWatcher) -> None:
        super().__init__(FleetConfig(servers=("nats://127.0.0.1:1",), node="a"))
        self.names = FleetNames("default")
        self._watcher = watcher
        self._client = cast(Any, object())
        self._up.set()

    async def call(self, work: Callable[[Any], Awaitable[Any]], timeout: float = 5.0) -> Any:
        """The watcher, whatever is asked."""
        return self._watcher


async def ends_soon(task: asyncio.Task[Any]) -> None:
    """Cancels a task once, as a task group does, and waits for it."""
    task.cancel()
    done, _ = await asyncio.wait((task,), timeout=30)
    assert done, "it goes on"


def test_a_result_that_comes_with_a_cancellation_is_not_taken() -> None:
    async def wait() -> None:
        queue: asyncio.Queue[int] = asyncio.Queue()

        async def take() -> None:
            while True:
                await cancellable(asyncio.wait_for(queue.get(), 60))

        task = asyncio.create_task(take())
        for _ in range(3):
            await asyncio.sleep(0)
        queue.put_nowait(1)
        # The message is there, and the task has yet to hear of it.
        for _ in range(2):
            await asyncio.sleep(0)
        await ends_soon(task)

    asyncio.run(wait())


def test_listening_to_the_nodes_ends() -> None:
    async def listen() -> None:
        watcher = DeafWatcher()
        nodes = Nodes(UpLink(watcher), lambda: Described(None, 0, 0, 0, None, {}, 0))
        task = asyncio.create_task(nodes._listen())
        await watcher.asked.wait()
        await ends_soon(task)

    asyncio.run(listen())


def test_following_the_registry_ends() -> None:
    async def follow() -> None:
        watcher = DeafWatcher()
        reading = RegistryWatcher(watcher, lambda _: Remote())

        async def run() -> None:
            while True:
                await reading.updates(1.0)

        task = asyncio.create_task(run())
        await watcher.asked.wait()
        await ends_soon(task)

    asyncio.run(follow())
