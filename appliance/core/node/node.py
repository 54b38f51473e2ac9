"""The one face that the command line and the TUI share: it asks `serve` when there is one, else the database."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from appliance.core.access.privacy import Privacy
from appliance.core.config.settings import Config
from appliance.core.control import QUICK, Tell, call, is_serving
from appliance.core.errors import NotServing
from appliance.core.git.mirror import discard_repository
from appliance.core.layout import Layout
from appliance.core.node.registration import WAIT_FOR_OWNER, added_document, clone_alone, register, unregister
from appliance.core.node.state_dir import Stores, make_privacy, mirrors_on_disk, open_stores, wanted_of_config
from appliance.core.observability.report import repo_documents, status_document
from appliance.core.process.owner import claim
from appliance.core.recording.found import turns_on_disk
from appliance.core.store.audit import LogBehind, TurnRef
from appliance.core.workspace.guest_kit import render_kit


@dataclass(frozen=True)
class Node:
    """One state directory and the configuration that goes with it. Every method raises GitmirrorError.

    `create` is whether a missing database is made; what only looks must not put an empty one in a lost one's place.
    """

    layout: Layout
    config: Config
    create: bool = True

    def stores(self) -> Stores:
        """The database, by default made when it is missing: the first command may come before the first `serve`."""
        return open_stores(self.layout, create=self.create)

    def status(self) -> dict[str, Any]:
        """What the contract calls `status`; without `serve` what the database knows, with `serving` false."""
        if is_serving(self.layout):
            try:
                return dict(call(self.layout, "status", timeout=QUICK))
            except NotServing:
                if is_serving(self.layout):
                    raise
        stores = self.stores()
        document = status_document(
            stores.registry.all(),
            stores.health.all(),
            self.config,
            time.time(),
            audit_head=stores.audit.head(),
        )
        try:
            stores.audit.check()
        except LogBehind as behind:
            document["warnings"] = [f"pushes will be refused: {behind.message}: {behind.hint}"]
        return document | {"repos": self._privacy.told(document["repos"])}

    def repos(self) -> list[dict[str, Any]]:
        """The registry. Without `serve` the config's list is reconciled into it first."""
        if is_serving(self.layout):
            return list(call(self.layout, "repos", timeout=QUICK))
        stores = self._reconciled()
        return self._privacy.told(repo_documents(stores.registry.all(), stores.health.all(), self.config, time.time()))

    def add(self, arguments: Mapping[str, Any], on_progress: Tell | None = None) -> dict[str, Any]:
        """Registers and, unless `wait` is false, waits for the first clone; `error` says why it failed, or is null."""
        if is_serving(self.layout):
            return dict(call(self.layout, "add", on_progress=on_progress, **arguments))
        stores = self._reconciled()
        repo = register(stores, self.layout, self.config, arguments)
        outcome = None
        if arguments.get("wait", True) and not stores.health.get(repo.id).cloned:
            outcome = clone_alone(stores, self.layout, self.config, repo, on_progress)
        return added_document(repo, stores.health.get(repo.id), self.layout, self.config, outcome)

    def remove(self, name: str, *, purge: bool) -> dict[str, Any]:
        """Unregisters; with `purge` the mirror is deleted too."""
        if is_serving(self.layout):
            return dict(call(self.layout, "remove", name=name, purge=purge))
        unregister(self._reconciled(), self.layout, self.config, name, purge=purge)
        if purge:
            owned = claim(self.layout, "remove-repo", wait=WAIT_FOR_OWNER)
            try:
                discard_repository(self.layout.mirror(name))
                shutil.rmtree(self.layout.workspaces / name, ignore_errors=True)
            finally:
                owned.release()
        return {"name": name, "purged": purge}

    def set_enabled(self, name: str, enabled: bool) -> dict[str, Any]:
        """Enables or disables; returns the repository as `repos` has it."""
        if is_serving(self.layout):
            return dict(call(self.layout, "set-enabled", name=name, enabled=enabled))
        stores = self._reconciled()
        repo = stores.registry.set_enabled(name, enabled)
        return self._privacy.told(repo_documents([repo], stores.health.all(), self.config, time.time()))[0]

    def accept_loss(self) -> dict[str, Any]:
        """Goes on with an audit log that lacks events: whether it did (`accepted`), and turns `found` in mirrors."""
        if is_serving(self.layout):
            return dict(call(self.layout, "accept-loss"))
        return {"accepted": self.stores().audit.accept_loss(), "found": 0}

    def unknown_turns(self) -> list[TurnRef]:
        """Turns that mirrors hold and the audit log does not know; a start of `serve` books them."""
        on_disk = (
            turn for name in mirrors_on_disk(self.layout) for turn in turns_on_disk(name, self.layout.mirror(name))
        )
        return self.stores().audit.unknown(on_disk)

    def refresh(self, names: list[str]) -> list[dict[str, Any]]:
        """Refreshes now, through `serve`; raises NotServing without it."""
        return list(call(self.layout, "refresh", names=names))

    def guest_kit(self) -> str:
        """The guest kit for this mirror; without `serve` with the addresses of the config."""
        if is_serving(self.layout):
            return str(call(self.layout, "guest-kit"))
        serve, known = self.config.serve, self._reconciled().registry.all()
        repos = [repo for repo in known if not self._privacy.is_private(repo)]
        git = serve.public_git or (f"git://{serve.git}" if serve.git else None)
        http = serve.public_http or (f"http://{serve.http}" if serve.http else None)
        return render_kit(git, http, repos)

    def refreshes(self, name: str | None, limit: int) -> list[dict[str, Any]]:
        """The history of refreshes, newest first."""
        stores = self.stores()
        if name is not None:
            stores.registry.get(name)
        return stores.health.refreshes(name, limit)

    def activity(self, limit: int, repo: str | None = None) -> list[dict[str, Any]]:
        """Hydrations, newest first."""
        return self.stores().activity.newest(limit, repo=repo)

    def issue_token(self, name: str, ttl: float, note: str) -> dict[str, Any]:
        """A read token of a repository, good for `ttl` seconds; `private` says whether guests need one."""
        stores = self.stores() if is_serving(self.layout) else self._reconciled()
        repo = stores.registry.get(name)
        return stores.tokens.issue(repo, ttl, note) | {"private": self._privacy.is_private(repo)}

    def tokens(self, repo: str | None) -> list[dict[str, Any]]:
        """Read tokens, newest first."""
        return self.stores().tokens.all(repo)

    def revoke_token(self, token_id: int) -> dict[str, Any]:
        """Ends a read token; a running `serve` lets nobody in with it from then on."""
        return self.stores().tokens.revoke(token_id)

    @property
    def _privacy(self) -> Privacy:
        return make_privacy(self.layout, self.config)

    def _reconciled(self) -> Stores:
        stores = self.stores()
        stores.registry.reconcile(wanted_of_config(self.config))
        return stores
