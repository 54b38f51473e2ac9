"""The nodes of a fleet: each says where the others can fetch from it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from appliance.core.fleet.link import FleetAway, FleetLink
from appliance.core.fleet.messages import NodeEntry, NotOurs
from appliance.core.fleet.names import key_of
from appliance.core.fleet.wire import read, write
from appliance.core.units import rfc3339


class Nodes:
    """What this node knows of the others."""

    def __init__(self, link: FleetLink, own_url: Callable[[], str | None]) -> None:
        self._link = link
        self._own_url = own_url
        self._known: dict[str, NodeEntry] = {}

    def url_of(self, node: str) -> str | None:
        """Where this node can fetch from that one, or None."""
        entry = self._known.get(node)
        return entry.url if entry else None

    async def run(self) -> None:
        """Says that this node is there, and listens."""
        while True:
            await self._link.wait_up()
            try:
                bucket: Any = await self._link.call(lambda context: context.key_value(self._link.names.nodes))
                now = rfc3339(time.time())
                entry = NodeEntry(self._link.node, "0", now, now, self._own_url(), "", 0, 0, 0, None, 0, 0)
                await bucket.put(key_of(entry.node), write(entry))
                watcher = await bucket.watchall()
                while self._link.is_up:
                    try:
                        found = await watcher.updates(timeout=1)
                        if found is not None:
                            told = read(found.value, NodeEntry)
                            self._known[told.node] = told
                    except (TimeoutError, NotOurs):
                        pass
            except (FleetAway, OSError):
                pass
            await asyncio.sleep(0.5)
