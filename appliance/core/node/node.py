"""The one face of a node that the command line and the live view share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from appliance.core.config.settings import Config
from appliance.core.errors import NotServing
from appliance.core.git.mirrors import mirrors_on_disk
from appliance.core.layout import Layout
from appliance.core.node.offline import OfflineNode
from appliance.core.node.running import RunningNode
from appliance.core.node.state_dir import open_stores
from appliance.core.process.control import is_serving
from appliance.core.recording.found import turns_on_disk
from appliance.core.store.audit import TurnRef
from appliance.core.store.stores import Stores


@dataclass(frozen=True)
class Node:
    """One state directory and the configuration that goes with it. Every method raises GitmirrorError.

    `create` is whether a missing database is made; what only looks must not put an empty one in a lost one's place.
    What the database alone can tell is read here. What differs with a running `serve` is asked of `current()`.
    """

    layout: Layout
    config: Config
    create: bool = True

    def current(self) -> RunningNode | OfflineNode:
        """The node as it is at this moment: looked at once for each operation, and not again within it."""
        chosen = RunningNode if is_serving(self.layout) else OfflineNode
        return chosen(self.layout, self.config, self.create)

    def status(self) -> dict[str, Any]:
        """What the contract calls `status`; a `serve` that ends while it is asked is none."""
        try:
            return self.current().status()
        except NotServing:
            left = self.current()
            if isinstance(left, RunningNode):
                raise
            return left.status()

    def stores(self) -> Stores:
        """The database, by default made when it is missing: the first command may come before the first `serve`."""
        return open_stores(self.layout, create=self.create)

    def refreshes(self, name: str | None, limit: int) -> list[dict[str, Any]]:
        """The history of refreshes, newest first."""
        stores = self.stores()
        if name is not None:
            stores.registry.get(name)
        return stores.health.refreshes(name, limit)

    def activity(self, limit: int, repo: str | None = None) -> list[dict[str, Any]]:
        """Hydrations, newest first."""
        return self.stores().activity.newest(limit, repo=repo)

    def tokens(self, repo: str | None) -> list[dict[str, Any]]:
        """Read tokens, newest first."""
        return self.stores().tokens.all(repo)

    def revoke_token(self, token_id: int) -> dict[str, Any]:
        """Ends a read token; a running `serve` lets nobody in with it from then on."""
        return self.stores().tokens.revoke(token_id)

    def unknown_turns(self) -> list[TurnRef]:
        """Turns that mirrors hold and the audit log does not know; a start of `serve` books them."""
        on_disk = (
            turn for name in mirrors_on_disk(self.layout) for turn in turns_on_disk(name, self.layout.mirror(name))
        )
        return self.stores().audit.unknown(on_disk)
