"""The routes about the fleet that this node belongs to."""

from __future__ import annotations

from typing import Any

from appliance.core.api import problem, schemas
from appliance.core.api.declaration import Answer, Call, Operation, Scope
from appliance.core.api.operations import NodeOperations


class FleetRoutes:
    """Answers requests about the fleet with `node`."""

    def __init__(self, node: NodeOperations) -> None:
        self._node = node

    def operations(self) -> list[Operation]:
        """The routes, in the order of the documentation."""
        return [
            Operation(
                "GET", "/v1/fleet", "fleet", "The nodes of the fleet, and what waits to go out to it", Scope.READ,
                self._fleet, {200: Answer("As `fleet status --json`.", schemas.FLEET)},
                details="A node alone has no `servers`. `connected` is whether the fleet can be used now; `trouble` "
                "says why not, and what to do. Of each node, `alive` is whether it has said something within 30 s, "
                "`seen` how many seconds ago it did, `behind` how many of its repositories are stale, failing or "
                "damaged, and `turns_behind` how many messages about recordings it has yet to read.",
            ),
            Operation(
                "DELETE", "/v1/fleet/nodes/{node}", "forget-node", "Forget a node that is gone for good",
                Scope.OPERATE, self._forget, {200: Answer("The fleet without it.", schemas.FLEET)},
                (problem.NOT_FOUND, problem.CONFLICT, problem.FAILED),
                details="Every node of the fleet forgets it. What it recorded stays. A node that is alive is refused, "
                "and one that comes back is there again.",
            ),
        ]  # fmt: skip

    async def _forget(self, call: Call) -> Any:
        return await self._node.forget_node(call.path["node"])

    async def _fleet(self, call: Call) -> Any:
        return await self._node.fleet()
