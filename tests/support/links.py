"""Connections of nodes to a fleet, run inside the test's own event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from appliance.core.config.fleet import FleetConfig
from appliance.core.fleet.link import FleetLink
from appliance.core.fleet.nodes import Nodes
from tests.support.nats import NatsCluster


def a_link(nats: NatsCluster, node: str = "a", fleet: str = "default", **settings: Any) -> FleetLink:
    """A connection to these servers that does not run yet; `settings` are those of `[fleet]`."""
    values: dict[str, Any] = {"servers": tuple(nats.urls), "name": fleet, "node": node, "replicas": nats.replicas}
    return FleetLink(FleetConfig(**(values | settings)))


@asynccontextmanager
async def running(*parts: FleetLink | Nodes) -> AsyncIterator[None]:
    """Runs these; at the end they must stop within a moment."""
    tasks = [asyncio.create_task(part.run()) for part in parts]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        async with asyncio.timeout(30):
            await asyncio.gather(*tasks, return_exceptions=True)


async def until(holds: Callable[[], Any], seconds: float = 30.0) -> Any:
    """Waits until a callable returns something true, and returns it."""
    async with asyncio.timeout(seconds):
        while not (found := holds()):
            await asyncio.sleep(0.01)
    return found
