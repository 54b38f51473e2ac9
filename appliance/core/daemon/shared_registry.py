"""The registry as operators change it: a change goes to the fleet first, if that can be reached, else it waits."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from appliance.core.daemon.fleet_repos import LocalRepos
from appliance.core.errors import Conflict
from appliance.core.events.facts import RegistryChanged
from appliance.core.fleet.bucket import RegistryBucket
from appliance.core.fleet.link import FleetLink
from appliance.core.fleet.messages import RepoEntry
from appliance.core.fleet.registry import FleetRegistry
from appliance.core.fleet.registry_rules import Remote, added
from appliance.core.models import Repo
from appliance.core.names import check_branch_name
from appliance.core.node.registration import PURGED, check_wanted, unregister
from appliance.core.store.registry import UnknownRepo, Wanted
from appliance.core.units import rfc3339
from appliance.core.upstream import same_upstream


class SharedRegistry:
    """The registry as operators change it: the fleet's if it can be reached, else this node's own, and it waits."""

    def __init__(self, local: LocalRepos, link: FleetLink) -> None:
        self._local = local
        self._node = link.node
        self._fleet = FleetRegistry(link, RegistryBucket(link), local.stores.fleet_repos, local, same_upstream)

    async def run(self) -> None:
        """Follows the fleet, until cancelled."""
        await self._fleet.run()

    def changed(self, event: RegistryChanged) -> None:
        """Has the fleet's entries looked at again, because the config may allow others now."""
        self._fleet.wake()

    async def add(self, arguments: Mapping[str, Any]) -> tuple[Repo, bool]:
        """Registers a repository; returns whether it is new here. Raises UsageError, Conflict, TryLater."""
        local = self._local
        wanted = await asyncio.to_thread(check_wanted, local.stores, local.state.layout, local.state.config, arguments)
        before = local.find(wanted.name)
        local.permitted.add(wanted.url)
        try:
            await self._claim_new(wanted)
        finally:
            local.permitted.discard(wanted.url)
        # After a claim it is there already, and this only says what the node's own registry says.
        repo = await asyncio.to_thread(local.stores.registry.add, wanted)
        await self._followed()
        return repo, before is None or before.id != repo.id

    async def _claim_new(self, wanted: Wanted) -> None:
        local, now = self._local, rfc3339(time.time())
        new = RepoEntry(
            wanted.name,
            wanted.url,
            wanted.branch,
            wanted.interval,
            True,
            self._node,
            now,
            registration=uuid.uuid4().hex,
        )

        def make(remote: Remote) -> RepoEntry | None:
            present, here = remote.present, local.find(wanted.name)
            if present is not None and not same_upstream(present.url, wanted.url):
                raise Conflict(
                    f"the name {wanted.name} is taken in the fleet by {present.url}, registered on node {present.by}",
                    hint="give this repository a different name: --name OWNER/REPO",
                )
            if here is not None and not same_upstream(here.url, wanted.url):
                # What this node alone has under the name; its registry refuses below.
                return None
            return added(remote, new, same_upstream)

        if not local.is_own(wanted.name):
            await self._fleet.claim(wanted.name, make)

    async def change(self, name: str, changes: Mapping[str, Any]) -> Repo:
        """Changes `enabled`, `branch` or `interval`. Raises UnknownRepo, Conflict, UsageError, TryLater."""
        check_branch_name(changes.get("branch"))
        local = self._local

        def make(remote: Remote) -> RepoEntry | None:
            repo, present = local.state.find(name), remote.present
            if present is None:
                # The bucket lost it, or it has yet to be offered.
                present = RepoEntry(
                    name,
                    repo.url,
                    repo.branch,
                    repo.interval,
                    repo.enabled,
                    self._node,
                    "",
                    registration=uuid.uuid4().hex,
                )
            changed = replace(present, **changes)
            return None if changed == present else replace(changed, by=self._node, at=rfc3339(time.time()))

        if local.state.find(name).source == "cli":
            await self._fleet.claim(name, make)
        repo = await asyncio.to_thread(local.stores.registry.change, name, changes)
        await self._followed()
        return repo

    async def remove(self, name: str, *, purge: bool) -> None:
        """Unregisters a repository; with `purge`, also deletes what is on disk. Raises UnknownRepo, Conflict."""
        local = self._local
        repo, acted = local.find(name), False

        def make(remote: Remote) -> RepoEntry | None:
            nonlocal acted
            entry = remote.entry
            if entry is None:
                return None
            # What is not registered here can be removed from the fleet; purged is then this node's leftover alone.
            is_here_alone = purge and repo is None and not entry.removed
            if is_here_alone or (entry.removed and entry.purged >= purge):
                acted = acted or (entry.removed and repo is not None)
                return None
            acted = True
            return replace(entry, removed=True, purged=purge, enabled=False, by=self._node, at=rfc3339(time.time()))

        if repo is None or repo.source == "cli":
            await self._fleet.claim(name, make)
        gone = partial(unregister, local.stores, local.state.layout, local.state.config, name, purge=purge)
        try:
            await asyncio.to_thread(gone)
        except UnknownRepo:
            if not acted:
                raise
        await self._followed()
        if purge:
            await local.files.delete(name, partial(local.stores.sessions.end_all, name, PURGED))
            self._fleet.wake()

    async def _followed(self) -> None:
        await self._local.follower.follow()
        self._fleet.wake()

    def complaints(self) -> list[str]:
        """Warnings for `status`."""
        return [*self._local.troubles.values(), *self._local.overtaken]
