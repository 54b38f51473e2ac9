"""The operations of a node on which `serve` runs: they are requests to its API on the control socket."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from appliance.core.api.client import QUICK, call, pages, repo_path
from appliance.core.config.settings import Config
from appliance.core.errors import GitmirrorError, NotFound
from appliance.core.layout import Layout
from appliance.core.models import Tell
from appliance.core.names import is_guest_name, is_repo_name
from appliance.core.store.registry import UnknownRepo

if TYPE_CHECKING:
    from appliance.core.store.stores import Stores


@dataclass(frozen=True)
class RunningNode:
    """A node with a running `serve`. Every method raises GitmirrorError, and NotServing if `serve` has ended."""

    layout: Layout
    config: Config
    create: bool

    def stores(self) -> Stores:
        """The database, which `serve` has reconciled with the config."""
        # Imported here, because most commands only ask `serve`, and this is more than half of their time.
        from appliance.core.node.state_dir import open_stores

        return open_stores(self.layout, create=self.create, virtual=True)

    def status(self) -> dict[str, Any]:
        """The document of `status --json`."""
        return dict(call(self.layout, "GET", "/v1/status", timeout=QUICK))

    def pulse(self, timeout: float) -> dict[str, Any] | None:
        """What only a running `serve` knows, without the repositories. It must answer within `timeout` seconds."""
        return dict(call(self.layout, "GET", "/v1/pulse", timeout=timeout))

    def transfers(self) -> list[dict[str, Any]]:
        """What guests are being sent now, the oldest first."""
        return list(call(self.layout, "GET", "/v1/transfers", timeout=QUICK))

    def storage(self) -> dict[str, Any]:
        """What the state directory takes, what goes next, and what went last."""
        return dict(call(self.layout, "GET", "/v1/storage", timeout=QUICK))

    def fleet(self) -> dict[str, Any]:
        """The fleet of this node, and what waits to go out to it."""
        return dict(call(self.layout, "GET", "/v1/fleet", timeout=QUICK))

    def forget_node(self, node: str) -> None:
        """Has the fleet forget a node that is gone for good. Raises NotFound, Conflict, GitmirrorError."""
        call(self.layout, "DELETE", f"/v1/fleet/nodes/{quote(node, safe='')}")

    def repos(self) -> list[dict[str, Any]]:
        """The registry."""
        return list(pages(self.layout, "/v1/repos"))

    def add(self, arguments: Mapping[str, Any], on_progress: Tell | None = None) -> dict[str, Any]:
        """Registers and, unless `wait` is false, waits for the first clone. `error` is why it failed, or null."""
        return dict(call(self.layout, "POST", "/v1/repos", arguments, on_progress=on_progress))

    def remove(self, name: str, *, purge: bool) -> dict[str, Any]:
        """Unregisters a repository; with `purge`, also deletes its mirror and its snapshots."""
        return dict(call(self.layout, "DELETE", self._path(name), query={"purge": purge}))

    def change(self, name: str, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Changes `enabled`, `branch` or `interval` of a repository; returns it as in `repos`."""
        return dict(call(self.layout, "PATCH", self._path(name), changes))

    def _path(self, name: str, *below: str) -> str:
        """As `repo_path`; for what no repository can be called, the error says which may be meant."""
        if is_repo_name(name):
            return repo_path(name, *below)
        known: list[str] = []
        with contextlib.suppress(GitmirrorError):
            known = [repo["name"] for repo in self.repos()]
        raise UnknownRepo(name, known)

    def refresh(self, names: list[str]) -> list[dict[str, Any]]:
        """Refreshes now and waits for the outcomes. No names mean all enabled repositories."""
        return list(call(self.layout, "POST", "/v1/refresh", {"repos": names}))

    def guest_kit(self) -> str:
        """The guest kit for this mirror."""
        return str(call(self.layout, "GET", "/v1/guest-kit"))

    def issue_token(self, name: str, ttl: float, note: str) -> dict[str, Any]:
        """Issues a read token of a repository, valid for `ttl` seconds. `private` says whether guests need one."""
        return dict(call(self.layout, "POST", "/v1/tokens", {"repo": name, "ttl": ttl, "note": note}))

    def revoke_token(self, token_id: int) -> dict[str, Any]:
        """Revokes a read token. Raises NotFound."""
        return dict(call(self.layout, "DELETE", f"/v1/tokens/{token_id}", timeout=QUICK))

    def issue_api_token(self, scope: str, ttl: float | None, name: str) -> dict[str, Any]:
        """Issues an API token, valid for `ttl` seconds or until it is revoked."""
        return dict(call(self.layout, "POST", "/v1/api-tokens", {"scope": scope, "ttl": ttl, "name": name}))

    def revoke_api_token(self, token_id: int) -> dict[str, Any]:
        """Revokes an API token. Raises NotFound."""
        return dict(call(self.layout, "DELETE", f"/v1/api-tokens/{token_id}", timeout=QUICK))

    def accept_loss(self) -> dict[str, Any]:
        """Accepts an audit log that lacks events: `accepted` is whether it did, `found` the turns found in mirrors."""
        return dict(call(self.layout, "POST", "/v1/audit/accept-loss"))

    def backup(self, to: str | None) -> dict[str, Any]:
        """Makes a backup now, to the directory `to` or the configured one, and waits for it."""
        return dict(call(self.layout, "POST", "/v1/backup", {"to": to}))

    def verify(self, names: list[str], on_progress: Tell | None = None, *, full: bool) -> list[dict[str, Any]]:
        """Inspects mirrors now; no names mean all. Damage is healed afterwards."""
        return list(call(self.layout, "POST", "/v1/verify", {"repos": names, "full": full}, on_progress=on_progress))

    def heal(self, name: str) -> dict[str, Any]:
        """Inspects one mirror now and heals it."""
        return dict(call(self.layout, "POST", self._path(name, "heal")))

    def lease_disk(self, name: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """Leases the drives of a branch or a commit, and waits until they are built."""
        return dict(call(self.layout, "POST", self._path(name, "disks"), request))

    def disks(self) -> list[dict[str, Any]]:
        """The leases that have not ended, newest first."""
        return list(pages(self.layout, "/v1/disks"))

    def release_disk(self, lease_id: str) -> dict[str, Any]:
        """Ends a lease. Raises NotFound."""
        if not lease_id or "/" in lease_id:
            # It would be the path of another route.
            raise NotFound(f"there is no lease {lease_id!a}", hint="`disks` lists them")
        return dict(call(self.layout, "DELETE", f"/v1/disks/{quote(lease_id, errors='surrogateescape')}"))

    def add_guest(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Makes a guest known. Raises Conflict, and NotFound for a repository."""
        return dict(call(self.layout, "POST", "/v1/guests", request))

    def guests(self) -> list[dict[str, Any]]:
        """Known guests, by name."""
        return list(pages(self.layout, "/v1/guests"))

    def remove_guest(self, name: str) -> dict[str, Any]:
        """Forgets a known guest and ends its connections. Raises NotFound."""
        if not is_guest_name(name):
            # It may be the path of another route.
            raise NotFound(f"there is no known guest {name!a:.100}", hint="`guests` lists those that are known")
        return dict(call(self.layout, "DELETE", f"/v1/guests/{quote(name)}"))

    def index_turns(self, tell: Tell) -> int:
        """Returns how many turns no search knows yet; `serve` reads them in the background."""
        return self.stores().turn_index.pending()

    def keep_session(self, repo: str, session: str, kept: bool) -> None:
        """Exempts a session from retention, or ends the exemption. Raises NotFound."""
        call(self.layout, "PATCH", self._path(repo, "sessions", session), {"keep": kept})

    def drop_session(self, repo: str, session: str, tip: str | None = None) -> None:
        """Ends a session at once; with `tip`, only while that is its last commit. Raises NotFound, Conflict."""
        query = {"tip": tip} if tip else None
        call(self.layout, "DELETE", self._path(repo, "sessions", session), query=query)

    def bring_turns(self, repo: str, session: str, turns: Sequence[int], attachment: str | None = None) -> None:
        """Has turns here, by their numbers, that other nodes took; with `attachment`, that file of theirs instead."""
        call(
            self.layout,
            "POST",
            self._path(repo, "sessions", session, "bring"),
            {"turns": list(turns), "attachment": attachment},
        )
