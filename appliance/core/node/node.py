"""The interface of a node that the command line and the live view share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from appliance.core.config.settings import Config
from appliance.core.errors import NotServing
from appliance.core.layout import Layout
from appliance.core.node.running import RunningNode
from appliance.core.process.control_socket import is_serving

if TYPE_CHECKING:
    from appliance.core.node.offline import OfflineNode
    from appliance.core.store.audit import TurnRef
    from appliance.core.store.stores import Stores

# What reads the database and runs git is imported where it is used: it is most of the time that a command takes which
# only asks `serve`.


@dataclass(frozen=True)
class Node:
    """One state directory and its configuration. Every method raises GitmirrorError.

    `create` is whether a missing database is created; a caller that only reads must not replace a lost one by an empty
    one. Methods here only read the database. Operations that differ while `serve` runs are on `current()`.
    """

    layout: Layout
    config: Config
    create: bool = True

    def current(self) -> RunningNode | OfflineNode:
        """The node with or without a `serve`, as it is now. Call it once for each operation, not again within it."""
        if is_serving(self.layout):
            return RunningNode(self.layout, self.config, self.create)
        from appliance.core.node.offline import OfflineNode

        return OfflineNode(self.layout, self.config, self.create)

    def status(self) -> dict[str, Any]:
        """The document of `status --json`. If `serve` ends during the call, the offline node answers."""
        try:
            return self.current().status()
        except NotServing:
            node = self.current()
            if isinstance(node, RunningNode):
                raise
            return node.status()

    def stores(self) -> Stores:
        """The database, created by default if missing, because the first command may run before the first `serve`."""
        from appliance.core.node.state_dir import open_stores

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
        """Revokes a read token; a running `serve` no longer accepts it."""
        return self.stores().tokens.revoke(token_id)

    def issue_api_token(self, scope: str, ttl: float | None, name: str) -> dict[str, Any]:
        """Issues an API token, valid for `ttl` seconds or until it is revoked; a running `serve` accepts it at once."""
        from appliance.core.store.api_tokens import TokenScope

        return self.stores().api_tokens.issue(TokenScope(scope), ttl, name)

    def api_tokens(self) -> list[dict[str, Any]]:
        """API tokens, newest first."""
        return self.stores().api_tokens.all()

    def revoke_api_token(self, token_id: int) -> dict[str, Any]:
        """Revokes an API token; a running `serve` accepts it no longer."""
        return self.stores().api_tokens.revoke(token_id)

    def recorded_in(self, name: str) -> list[dict[str, Any]]:
        """The sessions of a repository, as `sessions` lists them, whether or not it is registered."""
        return self.stores().sessions.all(name)

    def leases_of(self, name: str) -> int:
        """How many leases of a repository's disks have not ended, whether or not it is registered."""
        return len(self.stores().disk_leases.live(name))

    def unknown_turns(self) -> list[TurnRef]:
        """Turns that are in mirrors but not in the audit log. `serve` adds them to the log when it starts."""
        from appliance.core.git.mirrors import mirrors_on_disk
        from appliance.core.recording.found import turns_on_disk

        on_disk = (
            turn for name in mirrors_on_disk(self.layout) for turn in turns_on_disk(name, self.layout.mirror(name))
        )
        return self.stores().audit.unknown(on_disk)
