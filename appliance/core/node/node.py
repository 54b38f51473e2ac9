"""The interface of a node that the command line and the live view share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from appliance.core.config.settings import Config
from appliance.core.errors import NotServing
from appliance.core.layout import Layout
from appliance.core.node.callers_files import CallersFiles
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

    `create` is whether a missing database is created. A caller that only reads makes nothing: what is not there yet
    reads as an empty node. Methods here only read the database, but for what revokes a token. Operations that differ
    while `serve` runs are on `current()`. `files` writes what is to be outside the state directory.
    """

    layout: Layout
    config: Config
    create: bool = True
    files: CallersFiles = field(default_factory=CallersFiles)

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

        return open_stores(self.layout, create=self.create, virtual=True)

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
        found = self.stores().tokens.all(repo)
        self.expect(repo, found)
        return found

    def revoke_token(self, token_id: int) -> dict[str, Any]:
        """Revokes a read token; a running `serve` no longer accepts it."""
        try:
            return self.current().revoke_token(token_id)
        except NotServing:
            return self._beside_serve().revoke_token(token_id)

    def api_tokens(self) -> list[dict[str, Any]]:
        """API tokens, newest first."""
        return self.stores().api_tokens.all()

    def revoke_api_token(self, token_id: int) -> dict[str, Any]:
        """Revokes an API token; a running `serve` accepts it no longer."""
        try:
            return self.current().revoke_api_token(token_id)
        except NotServing:
            return self._beside_serve().revoke_api_token(token_id)

    def _beside_serve(self) -> OfflineNode:
        """For what must not wait for a `serve` that hangs, and is seen by it in the database at its next request."""
        from appliance.core.node.offline import OfflineNode

        return OfflineNode(self.layout, self.config, self.create)

    def recorded_in(self, name: str) -> list[dict[str, Any]]:
        """The sessions of a repository, as `sessions` lists them, whether or not it is registered."""
        return self.stores().sessions.all(name)

    def leases_of(self, name: str) -> int:
        """How many leases of a repository's disks have not ended, whether or not it is registered."""
        return len(self.stores().disk_leases.live(name))

    def expect(self, repo: str | None, found: Sequence[object]) -> None:
        """Raises UnknownRepo if nothing was found of a repository because its name is misspelt.

        Of one that was removed, what happened can still be listed.
        """
        if repo is not None and not found:
            self.stores().registry.get(repo)

    def unknown_turns(self) -> list[TurnRef]:
        """Turns that are in mirrors but not in the audit log. `serve` adds them to the log when it starts."""
        from appliance.core.git.mirrors import mirrors_on_disk
        from appliance.core.recording.found import turns_on_disk

        on_disk = (
            turn for name in mirrors_on_disk(self.layout) for turn in turns_on_disk(name, self.layout.mirror(name))
        )
        return self.stores().audit.unknown(on_disk)
