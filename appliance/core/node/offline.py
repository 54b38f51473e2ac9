"""The operations of a node on which no `serve` runs: they read the database and do the work in this process."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from appliance.core.access.privacy import Privacy
from appliance.core.access.read_tokens import issue_token
from appliance.core.config.addresses import tcp_url
from appliance.core.config.settings import Config
from appliance.core.fleet.report import fleet_document, short_document
from appliance.core.fleet.waiting import Waiting
from appliance.core.git.mirror import Mirror, discard_repository
from appliance.core.git.mirror_locks import MirrorLocks
from appliance.core.layout import Layout
from appliance.core.maintenance.usage import UsageMeter
from appliance.core.models import Tell
from appliance.core.node.guests import add_alone, guests_alone, remove_alone
from appliance.core.node.registration import WAIT_FOR_OWNER, added_document, clone_alone, register, unregister
from appliance.core.node.state_dir import make_git, make_privacy, open_stores, wanted_of_config
from appliance.core.node.storage import MOST_REPOS, storage_document
from appliance.core.observability.report import repo_documents, status_document
from appliance.core.process.control_socket import not_serving
from appliance.core.process.owner import claim
from appliance.core.store.audit import LogBehind
from appliance.core.store.database import MayNotWrite
from appliance.core.store.remedies import remedy
from appliance.core.store.stores import Stores
from appliance.core.store.told import HeadUnreadable
from appliance.core.workspace.disk.collection import discard_disks
from appliance.core.workspace.disk.images import DiskPlace
from appliance.core.workspace.disk.lease_documents import lease_document
from appliance.core.workspace.guest_kit import render_kit

_AWAY = "serve is not running, so nothing goes out to the fleet or comes from it"


@dataclass(frozen=True)
class OfflineNode:
    """A node without `serve`. Every method raises GitmirrorError.

    Methods that change or list the registry first reconcile it with the config's list, as `serve` does at its start.
    """

    layout: Layout
    config: Config
    create: bool

    def stores(self) -> Stores:
        """The database, reconciled with the config's list, unless this user may only read it."""
        stores, listed = open_stores(self.layout, create=self.create, virtual=True), wanted_of_config(self.config)
        with contextlib.suppress(MayNotWrite):
            stores.registry.reconcile(listed)
        return stores

    def status(self) -> dict[str, Any]:
        """The document of `status --json` as far as the database knows it, with `serving` false."""
        # The registry is not reconciled here, because reading a node's status must not change it.
        stores = open_stores(self.layout, create=False, virtual=True)
        document = status_document(
            stores.registry.all(),
            stores.health.all(),
            self.config,
            time.time(),
            audit_head=stores.audit.head(),
        )
        try:
            stores.audit.check()
        except (LogBehind, HeadUnreadable) as error:
            mend = remedy(error, self.layout.state, self.config.backup.to)
            document["warnings"] = [f"pushes will be refused: {error.message}: {mend}"]
        if self.config.fleet.is_on:
            document["fleet"] = short_document(self.config.fleet, self._waiting(stores), trouble=_AWAY)
        storage = self.storage(MOST_REPOS)
        return document | {"repos": self._privacy.told(document["repos"]), "storage": storage}

    def fleet(self) -> dict[str, Any]:
        """The fleet as far as the database knows it: what waits to go out."""
        config = self.config.fleet
        if not config.is_on:
            return fleet_document(config, {}, trouble=None)
        return fleet_document(
            config, self._waiting(open_stores(self.layout, create=self.create, virtual=True)), trouble=_AWAY
        )

    def _waiting(self, stores: Stores) -> dict[str, int]:

        def that_may_leave(names: Iterable[str]) -> set[str]:
            registered = {repo.name: repo for repo in stores.registry.all()}
            known = [registered[name] for name in names if name in registered]
            privacy, everything = self._privacy, self.config.fleet.replicate_private
            return {repo.name for repo in known if everything or not privacy.is_private(repo)}

        return Waiting(stores.database, stores.fleet, that_may_leave).count()

    def pulse(self, timeout: float) -> dict[str, Any] | None:
        """Returns None, because only a running `serve` has a pulse."""
        return None

    def transfers(self) -> list[dict[str, Any]]:
        """Raises NotServing, because only a running `serve` sends anything."""
        raise not_serving(self.layout)

    def storage(self, most_repos: int = sys.maxsize) -> dict[str, Any]:
        """What the state directory takes. All of it is looked at; nothing goes while no `serve` runs."""
        usage, packs = UsageMeter(self.layout).measure(), self.stores().sessions.packs_by_repo()
        budget = self.config.storage.budget
        return storage_document(usage, packs, self.layout.state, budget, most_repos=most_repos)

    def repos(self) -> list[dict[str, Any]]:
        """The registry."""
        stores = self.stores()
        return self._privacy.told(repo_documents(stores.registry.all(), stores.health.all(), self.config, time.time()))

    def add(self, arguments: Mapping[str, Any], on_progress: Tell | None = None) -> dict[str, Any]:
        """Registers and, unless `wait` is false, clones in this process. `error` is why the clone failed, or null."""
        stores = self.stores()
        repo = register(stores, self.layout, self.config, arguments)
        outcome = None
        if arguments.get("wait", True) and not stores.health.get(repo.id).cloned:
            outcome = clone_alone(stores, self.layout, self.config, repo, on_progress)
        return added_document(repo, stores.health.get(repo.id), self.layout, self.config, outcome)

    def remove(self, name: str, *, purge: bool) -> dict[str, Any]:
        """Unregisters a repository; with `purge`, also deletes its mirror, its snapshots and its disks."""
        stores = self.stores()
        unregister(stores, self.layout, self.config, name, purge=purge)
        if purge:
            owned = claim(self.layout, "remove-repo", wait=WAIT_FOR_OWNER)
            try:
                discard_repository(self.layout.mirror(name))
                shutil.rmtree(self.layout.workspaces / name, ignore_errors=True)
                shutil.rmtree(self.layout.attachments / name, ignore_errors=True)
                shutil.rmtree(self.layout.lfs / name, ignore_errors=True)
                stores.disk_leases.release_all(name)
                discard_disks(DiskPlace(self.layout.disks / name))
            finally:
                owned.release()
        return {"name": name, "purged": purge}

    def change(self, name: str, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Changes `enabled`, `branch` or `interval` of a repository; returns it as in `repos`."""
        stores = self.stores()
        repo = stores.registry.change(name, changes)
        return self._privacy.told(repo_documents([repo], stores.health.all(), self.config, time.time()))[0]

    def refresh(self, names: list[str]) -> list[dict[str, Any]]:
        """Raises NotServing, because only a running `serve` refreshes."""
        self._needs_serve()

    def guest_kit(self) -> str:
        """The guest kit, with the addresses from the config."""
        serve, known = self.config.serve, self.stores().registry.all()
        repos = [repo for repo in known if not self._privacy.is_private(repo)]
        git = serve.public_git or tcp_url(serve.git, "git")
        http = serve.public_http or tcp_url(serve.http, "http")
        return render_kit(git, http, repos, settings=self.config.workspace)

    def issue_token(self, name: str, ttl: float, note: str) -> dict[str, Any]:
        """Issues a read token of a repository, valid for `ttl` seconds. `private` says whether guests need one."""
        stores = self.stores()
        return issue_token(stores.tokens, self._privacy, stores.registry.get(name), ttl, note)

    def revoke_token(self, token_id: int) -> dict[str, Any]:
        """Revokes a read token. Raises UnknownToken."""
        return open_stores(self.layout, create=self.create, virtual=True).tokens.revoke(token_id)

    def issue_api_token(self, scope: str, ttl: float | None, name: str) -> dict[str, Any]:
        """Issues an API token, valid for `ttl` seconds or until it is revoked."""
        from appliance.core.store.api_tokens import TokenScope

        return open_stores(self.layout, create=self.create, virtual=True).api_tokens.issue(TokenScope(scope), ttl, name)

    def revoke_api_token(self, token_id: int) -> dict[str, Any]:
        """Revokes an API token. Raises UnknownApiToken."""
        return open_stores(self.layout, create=self.create, virtual=True).api_tokens.revoke(token_id)

    def accept_loss(self) -> dict[str, Any]:
        """Accepts an audit log that lacks events. The next start of `serve` looks for the lost turns in mirrors."""
        return {"accepted": open_stores(self.layout, create=self.create, virtual=True).audit.accept_loss(), "found": 0}

    def backup(self, to: str | None) -> dict[str, Any]:
        """Makes a backup in this process, to the directory `to` or the configured one."""
        # Imported here, because every other command would pay for it: a fifth of the imports of `status`.
        from appliance.core.backup.schedule import no_directory
        from appliance.core.backup.writer import BackupWriter

        chosen = to or self.config.backup.to
        if not chosen:
            raise no_directory()
        open_stores(self.layout, create=False).database.close()
        owned = claim(self.layout, "backup", wait=WAIT_FOR_OWNER)
        try:
            git = make_git(self.layout, self.config, owned.children).gently()
            writer = BackupWriter(self.layout, lambda name: Mirror(self.layout.mirror(name), git), MirrorLocks())
            return asyncio.run(writer.write(Path(chosen))).document()
        finally:
            owned.release()

    def verify(self, names: list[str], on_progress: Tell | None = None, *, full: bool) -> list[dict[str, Any]]:
        """Inspects mirrors in this process; no names mean all."""
        from appliance.core.node.examining import verify_alone

        return verify_alone(self.stores(), self.layout, self.config, names, on_progress, full=full)

    def heal(self, name: str) -> dict[str, Any]:
        """Inspects one mirror in this process and heals it."""
        from appliance.core.node.examining import heal_alone

        return heal_alone(self.stores(), self.layout, self.config, name)

    def lease_disk(self, name: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """Raises NotServing, because only a running `serve` builds disks and keeps those that guests hold."""
        self._needs_serve()

    def disks(self) -> list[dict[str, Any]]:
        """The leases that have not ended, newest first."""
        leases = self.stores().disk_leases.live()
        return [lease_document(lease, DiskPlace(self.layout.disks / lease.repo)) for lease in leases]

    def release_disk(self, lease_id: str) -> dict[str, Any]:
        """Raises NotServing, because only a running `serve` ends leases."""
        self._needs_serve()

    def add_guest(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Makes a guest known from the next start of `serve` on."""
        return add_alone(self.stores(), request, self.config.guests.socket_directories)

    def guests(self) -> list[dict[str, Any]]:
        """Known guests, by name."""
        return guests_alone(self.stores())

    def remove_guest(self, name: str) -> dict[str, Any]:
        """Forgets a guest."""
        return remove_alone(self.stores(), name)

    def index_turns(self, tell: Tell) -> int:
        """Reads the turns that no search knows yet, for a bounded time; returns how many are left."""
        from appliance.core.node.searching import index_alone

        return index_alone(open_stores(self.layout, create=self.create, virtual=True), self.layout, self.config, tell)

    def keep_session(self, repo: str, session: str, kept: bool) -> None:
        """Exempts a session from retention, or ends the exemption."""
        open_stores(self.layout, create=False, virtual=True).sessions.keep(repo, session, kept)

    def bring_turns(self, repo: str, session: str, turns: Sequence[int], attachment: str | None = None) -> None:
        """Raises NotServing, because only a running `serve` is connected to the fleet."""
        self._needs_serve()

    def forget_node(self, node: str) -> None:
        """Raises NotServing, because only a running `serve` is connected to the fleet."""
        self._needs_serve()

    def drop_session(self, repo: str, session: str, tip: str | None = None) -> None:
        """Raises NotServing, because only a running `serve` ends sessions: it may be recording into them."""
        self._needs_serve()

    @property
    def _privacy(self) -> Privacy:
        return make_privacy(self.layout, self.config)

    def _needs_serve(self) -> NoReturn:
        raise not_serving(self.layout)
