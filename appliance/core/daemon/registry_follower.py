"""Makes what is in the registry what is refreshed, served and told."""

from __future__ import annotations

import asyncio

from appliance.core.access.catalog import Catalog
from appliance.core.access.gate import AccessGate
from appliance.core.daemon.state import ServeState
from appliance.core.events import Publish, RefreshEnded, RegistryChanged
from appliance.core.models import Health, Repo
from appliance.core.node.state_dir import Stores
from appliance.core.refresh.scheduler import Scheduler, Settings


class RegistryFollower:
    """Keeps `state`, the scheduler and the gate's catalog equal to the registry; everyone else hears an event."""

    def __init__(
        self, state: ServeState, stores: Stores, scheduler: Scheduler, gate: AccessGate, publish: Publish
    ) -> None:
        self._state = state
        self._stores = stores
        self._scheduler = scheduler
        self._gate = gate
        self._publish = publish
        self._one_at_a_time = asyncio.Lock()

    async def follow(self) -> None:
        """Follows what is in the registry now. Raises StoreError, then nothing changed."""
        # What was read first must not be followed last.
        async with self._one_at_a_time:
            repos, healths = await asyncio.to_thread(self._read)
            self._take(repos, healths)

    def _read(self) -> tuple[list[Repo], dict[int, Health]]:
        return self._stores.registry.all(), self._stores.health.all()

    def _take(self, repos: list[Repo], healths: dict[int, Health]) -> None:
        state = self._state
        kept = {repo.id for repo in repos if repo.enabled}
        gone = tuple(repo for repo in state.repos if repo.id not in kept)
        state.repos = repos
        refresh = state.config.refresh
        self._scheduler.follow(repos, healths, Settings(refresh.interval, refresh.concurrency))
        self.open_catalog()
        self._publish(RegistryChanged(gone=gone))

    def open_catalog(self) -> None:
        """From here on guests find what the repositories known and the config in use let them find."""
        self._gate.catalog = Catalog(self._state.repos, self._state.privacy.is_private)

    def reconsider(self, event: RefreshEnded) -> None:
        """A refresh without a credential may have proved that everybody may read a repository that was private."""
        repo = self._gate.catalog.private(event.repo.id)
        if repo is not None and not self._state.privacy.is_private(repo):
            self.open_catalog()
