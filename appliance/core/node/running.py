"""What can be asked of a node while `serve` runs on it: `serve` does it, over its control socket."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from appliance.core.access.read_tokens import issue_token
from appliance.core.config.settings import Config
from appliance.core.layout import Layout
from appliance.core.node.state_dir import make_privacy, open_stores
from appliance.core.process.control import QUICK, Tell, call
from appliance.core.store.stores import Stores


@dataclass(frozen=True)
class RunningNode:
    """A node that serves. Every method raises GitmirrorError, NotServing among them when `serve` ended meanwhile."""

    layout: Layout
    config: Config
    create: bool

    def stores(self) -> Stores:
        """The database, which `serve` has reconciled with the config."""
        return open_stores(self.layout, create=self.create)

    def status(self) -> dict[str, Any]:
        """What the contract calls `status`."""
        return dict(call(self.layout, "status", timeout=QUICK))

    def pulse(self, timeout: float) -> dict[str, Any] | None:
        """What only a running serve knows, without the repositories; it has `timeout` seconds to tell."""
        return dict(call(self.layout, "pulse", timeout=timeout))

    def repos(self) -> list[dict[str, Any]]:
        """The registry."""
        return list(call(self.layout, "repos", timeout=QUICK))

    def add(self, arguments: Mapping[str, Any], on_progress: Tell | None = None) -> dict[str, Any]:
        """Registers and, unless `wait` is false, waits for the first clone; `error` says why it failed, or is null."""
        return dict(call(self.layout, "add", on_progress=on_progress, **arguments))

    def remove(self, name: str, *, purge: bool) -> dict[str, Any]:
        """Unregisters; with `purge` the mirror is deleted too."""
        return dict(call(self.layout, "remove", name=name, purge=purge))

    def set_enabled(self, name: str, enabled: bool) -> dict[str, Any]:
        """Enables or disables; returns the repository as `repos` has it."""
        return dict(call(self.layout, "set-enabled", name=name, enabled=enabled))

    def refresh(self, names: list[str]) -> list[dict[str, Any]]:
        """Refreshes now, and waits."""
        return list(call(self.layout, "refresh", names=names))

    def guest_kit(self) -> str:
        """The guest kit for this mirror."""
        return str(call(self.layout, "guest-kit"))

    def issue_token(self, name: str, ttl: float, note: str) -> dict[str, Any]:
        """A read token of a repository, good for `ttl` seconds; `private` says whether guests need one."""
        stores = self.stores()
        return issue_token(stores.tokens, make_privacy(self.layout, self.config), stores.registry.get(name), ttl, note)

    def accept_loss(self) -> dict[str, Any]:
        """Goes on with an audit log that lacks events: whether it did (`accepted`), and turns `found` in mirrors."""
        return dict(call(self.layout, "accept-loss"))

    def backup(self, to: str | None) -> dict[str, Any]:
        """Makes a backup now, to the directory `to` or the configured one, and waits for it."""
        return dict(call(self.layout, "backup", to=to))

    def drop_session(self, repo: str, session: str) -> None:
        """Ends a session at once."""
        call(self.layout, "session-drop", repo=repo, session=session)
