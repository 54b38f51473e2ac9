"""Applies the registry: its repositories are the ones that are refreshed, served and reported."""

from __future__ import annotations

import asyncio
import logging

from appliance.core.access.allowed import unusable
from appliance.core.access.catalog import Catalog
from appliance.core.access.gate import AccessGate
from appliance.core.daemon.state import ServeState
from appliance.core.errors import GitmirrorError
from appliance.core.events.facts import Publish, RefreshEnded, RegistryChanged
from appliance.core.git.mirrors import Mirrors
from appliance.core.models import Health, Repo
from appliance.core.node.salvage import salvaged_repos
from appliance.core.node.state_dir import refuse_foreign_leftover, wanted_of_config
from appliance.core.refresh.scheduler import Scheduler, Settings
from appliance.core.store.database import StoreError
from appliance.core.store.stores import Stores

log = logging.getLogger(__name__)


class RegistryFollower:
    """Keeps `state`, the scheduler and the gate's catalog in step with the registry; publishes `RegistryChanged`."""

    def __init__(
        self,
        state: ServeState,
        stores: Stores,
        mirrors: Mirrors,
        scheduler: Scheduler,
        gate: AccessGate,
        publish: Publish,
    ) -> None:
        self._state = state
        self._stores = stores
        self._mirrors = mirrors
        self._scheduler = scheduler
        self._gate = gate
        self._publish = publish
        self._one_at_a_time = asyncio.Lock()
        self.is_reconciled = True
        """Whether the config's list is in the registry. On a full disk, the registry can be read but not changed."""

    async def follow(self) -> None:
        """Applies the registry as it is now. Raises StoreError and then has changed nothing."""
        # Runs one at a time, so that an older state of the registry is never applied after a newer one.
        async with self._one_at_a_time:
            repos, healths = await asyncio.to_thread(self._read)
            self._state.registry_lost = None
            self._take(repos, healths)

    async def follow_config(self) -> None:
        """Puts the config's list into the registry and follows it; without a database, uses config and mirrors."""
        state = self._state
        try:
            await asyncio.to_thread(self._stores.registry.all)
            await asyncio.to_thread(self._try_to_reconcile)
            await self.follow()
        except StoreError as error:
            if state.registry_lost is None:
                log.error("the registry cannot be read: %s (%s)", error.message, state.mend(error))
                state.problems = state.config.warnings()
                self._follow_salvaged(error)

    async def follow_new_config(self) -> None:
        """The same after a reload. Raises StoreError if the list cannot be written, and the reload is refused."""
        if self._state.registry_lost is not None:
            self._follow_salvaged(self._state.registry_lost)
        else:
            await asyncio.to_thread(self._reconcile)
            await self.follow()

    def _try_to_reconcile(self) -> None:
        state = self._state
        try:
            self._reconcile()
            self.is_reconciled = True
        except StoreError as error:
            self.is_reconciled = False
            state.problems = [*state.config.warnings(), f"the config's list is not applied: {error.message}"]
            log.error("the config's list is not applied: %s", error.message)

    def _reconcile(self) -> None:
        """Writes the config's list into the registry. Raises StoreError."""
        state, registry = self._state, self._stores.registry
        known = {repo.name for repo in registry.all()}
        allow_local = state.config.refresh.allow_local
        problems, usable = [*state.config.warnings(), *unusable(state.config.allow, allow_local=allow_local)], []
        for wanted in wanted_of_config(state.config):
            try:
                if wanted.name not in known:
                    refuse_foreign_leftover(state.layout, wanted)
                usable.append(wanted)
            except GitmirrorError as error:
                problems.append(f"{error.message}: {error.hint}")
        state.problems = [*problems, *registry.reconcile(usable)]
        for problem in state.problems:
            log.warning("%s", problem)

    def _follow_salvaged(self, error: StoreError) -> None:
        state = self._state
        state.registry_lost = error
        repos = salvaged_repos(state.layout, state.config)
        self._take(repos, {repo.id: Health(cloned=self._mirrors.has(repo)) for repo in repos})

    def _read(self) -> tuple[list[Repo], dict[int, Health]]:
        return self._stores.registry.all(), self._stores.health.all()

    def _take(self, repos: list[Repo], healths: dict[int, Health]) -> None:
        state = self._state
        enabled = {repo.id for repo in repos if repo.enabled}
        gone = tuple(repo for repo in state.repos if repo.id not in enabled)
        state.repos = repos
        refresh = state.config.refresh
        self._scheduler.follow(repos, healths, Settings(refresh.interval, refresh.concurrency))
        self.open_catalog()
        self._publish(RegistryChanged(gone=gone))

    def open_catalog(self) -> None:
        """Replaces the gate's catalog by one made from the repositories and the config that are in use now."""
        self._gate.catalog = Catalog(self._state.repos, self._state.privacy.is_private)

    def reconsider(self, event: RefreshEnded) -> None:
        """Updates the catalog if this refresh proved, by needing no credential, that a private repository is public."""
        repo = self._gate.catalog.private(event.repo.id)
        if repo is not None and not self._state.privacy.is_private(repo):
            self.open_catalog()
