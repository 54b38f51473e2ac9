"""The operations of a node on which `serve` runs: they call it over its control socket."""

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
    """A node with a running `serve`. Every method raises GitmirrorError, and NotServing if `serve` has ended."""

    layout: Layout
    config: Config
    create: bool

    def stores(self) -> Stores:
        """The database, which `serve` has reconciled with the config."""
        return open_stores(self.layout, create=self.create)

    def status(self) -> dict[str, Any]:
        """The document of `status --json`."""
        return dict(call(self.layout, "status", timeout=QUICK))

    def pulse(self, timeout: float) -> dict[str, Any] | None:
        """What only a running `serve` knows, without the repositories. It must answer within `timeout` seconds."""
        return dict(call(self.layout, "pulse", timeout=timeout))

    def repos(self) -> list[dict[str, Any]]:
        """The registry."""
        return list(call(self.layout, "repos", timeout=QUICK))

    def add(self, arguments: Mapping[str, Any], on_progress: Tell | None = None) -> dict[str, Any]:
        """Registers and, unless `wait` is false, waits for the first clone. `error` is why it failed, or null."""
        return dict(call(self.layout, "add", on_progress=on_progress, **arguments))

    def remove(self, name: str, *, purge: bool) -> dict[str, Any]:
        """Unregisters a repository; with `purge`, also deletes its mirror and its snapshots."""
        return dict(call(self.layout, "remove", name=name, purge=purge))

    def set_enabled(self, name: str, enabled: bool) -> dict[str, Any]:
        """Enables or disables a repository; returns it as in `repos`."""
        return dict(call(self.layout, "set-enabled", name=name, enabled=enabled))

    def refresh(self, names: list[str]) -> list[dict[str, Any]]:
        """Refreshes now and waits for the outcomes. No names mean all enabled repositories."""
        return list(call(self.layout, "refresh", names=names))

    def guest_kit(self) -> str:
        """The guest kit for this mirror."""
        return str(call(self.layout, "guest-kit"))

    def issue_token(self, name: str, ttl: float, note: str) -> dict[str, Any]:
        """Issues a read token of a repository, valid for `ttl` seconds. `private` says whether guests need one."""
        stores = self.stores()
        return issue_token(stores.tokens, make_privacy(self.layout, self.config), stores.registry.get(name), ttl, note)

    def accept_loss(self) -> dict[str, Any]:
        """Accepts an audit log that lacks events: `accepted` is whether it did, `found` the turns found in mirrors."""
        return dict(call(self.layout, "accept-loss"))

    def backup(self, to: str | None) -> dict[str, Any]:
        """Makes a backup now, to the directory `to` or the configured one, and waits for it."""
        return dict(call(self.layout, "backup", to=to))

    def verify(self, names: list[str], on_progress: Tell | None = None, *, full: bool) -> list[dict[str, Any]]:
        """Inspects mirrors now; no names mean all. Damage is healed afterwards."""
        return list(call(self.layout, "verify", on_progress=on_progress, names=names, full=full))

    def heal(self, name: str) -> dict[str, Any]:
        """Inspects one mirror now and heals it."""
        return dict(call(self.layout, "heal", name=name))

    def index_turns(self, tell: Tell) -> int:
        """Returns how many turns no search knows yet; `serve` reads them in the background."""
        return self.stores().turn_index.pending()

    def drop_session(self, repo: str, session: str) -> None:
        """Ends a session at once."""
        call(self.layout, "session-drop", repo=repo, session=session)
