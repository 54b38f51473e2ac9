"""The clock of the fleet's servers, by which a node notices that its own or another one's is wrong."""

from __future__ import annotations

from appliance.core.fleet.link import FleetLink
from appliance.core.fleet.nodes import Nodes


class FleetClock:
    """Knows the servers' time from this node's own entry, which comes back with the time of its storing."""

    def __init__(self, link: FleetLink, nodes: Nodes) -> None:
        self._link = link
        self._nodes = nodes

    def now(self) -> float | None:
        """The servers' time in Unix seconds, some seconds early at most; None while they are not heard."""
        return self._nodes.server_time()

    async def stored_at(self, place: int) -> float | None:
        """When the servers stored the row at a place of the stream of turns; None if none is there.

        Raises FleetAway.
        """
        from nats.js.errors import NotFoundError

        if place < 1:
            return None
        try:
            row = await self._link.call(lambda context: context.get_msg(self._link.names.turns, place))
        except NotFoundError:
            return None
        return row.time.timestamp() if row.time else None
