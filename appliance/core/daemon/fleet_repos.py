"""Applies the fleet's registry to this node: what the fleet has is registered, withdrawn or purged here."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

from appliance.core.config.settings import Config
from appliance.core.daemon.mirror_files import MirrorFiles
from appliance.core.daemon.registry_follower import RegistryFollower
from appliance.core.daemon.state import ServeState
from appliance.core.errors import UsageError
from appliance.core.fleet.messages import RepoEntry
from appliance.core.fleet.registry_rules import Remote, entry_of, is_renewed
from appliance.core.models import ALLOWED, Repo
from appliance.core.node.state_dir import configured_url, make_keyring, wanted_of_config, wanted_repo
from appliance.core.recording.found import FoundTurns, turns_on_disk
from appliance.core.store.fleet_repos import KnownEntry, Pending, Settled
from appliance.core.store.registry import Wanted
from appliance.core.store.stores import Stores
from appliance.core.upstream import same_upstream

log = logging.getLogger(__name__)

LOCKED = 2.0
"""Seconds to wait for a mirror that is in use before deleting it is put off."""


@dataclass
class LocalRepos:
    """Applies entries of the fleet to this node. Implements `fleet.registry.LocalRegistry`.

    `troubles` says why a repository of the fleet is not followed here, by name; `overtaken` which changes of this node
    came too late. `permitted` are local upstreams that an operator of this node allows while adding them.
    """

    state: ServeState
    stores: Stores
    follower: RegistryFollower
    files: MirrorFiles
    found: FoundTurns
    troubles: dict[str, str] = field(default_factory=dict)
    overtaken: list[str] = field(default_factory=list)
    permitted: set[str] = field(default_factory=set)
    _purging: set[str] = field(default_factory=set)
    _registered: list[str] = field(default_factory=list)
    _parsed: tuple[Config, list[Wanted]] | None = None

    def is_own(self, name: str) -> bool:
        """Whether the config lists a name, and `add-repo` did not register it here before."""
        repo = self.find(name)
        return (repo is None or repo.source == "config") and any(wanted.name == name for wanted in self._listed())

    def find(self, name: str) -> Repo | None:
        """The repository of that name, or None."""
        return next((repo for repo in self.state.repos if repo.name == name), None)

    async def apply(
        self, remote: Remote, known: KnownEntry | None, *, pending: Pending | None, overtaken: str | None
    ) -> bool:
        """Makes the registration of one name what the fleet has, and notes that. Returns False to be called again."""
        entry = remote.entry
        assert entry is not None
        settled = Settled(
            entry.name,
            remote.known,
            pending=pending.id if pending else None,
            overtaken=overtaken,
            is_own=pending is None and entry.by == self.state.config.fleet.node_name,
        )
        self.troubles.pop(entry.name, None)
        if overtaken is not None:
            log.warning("%s", overtaken)
        if self.is_own(entry.name):
            await asyncio.to_thread(self.stores.fleet_repos.settle, settled)
            return True
        if not await self._finish_purge(entry.name):
            return False
        if entry.removed:
            return await self._remove(entry, settled)
        renew = is_renewed(known, entry) and not (pending is not None and pending.is_new)
        return await self._register(entry, settled, renew=renew)

    async def reconsider(self, known: Mapping[str, KnownEntry]) -> None:
        """Follows entries that it could not follow before, and notes why it does not follow others."""
        self.overtaken = await asyncio.to_thread(self.stores.fleet_repos.overtaken)
        listed = {wanted.name: wanted for wanted in self._listed()}
        here = {repo.name: repo for repo in self.state.repos}
        for name in self.troubles.keys() - known.keys():
            del self.troubles[name]
        if self.state.registry_lost is not None:
            return
        for name, each in known.items():
            entry, repo = entry_of(each), here.get(name)
            own = listed.get(name) if repo is None or repo.source == "config" else None
            if entry is None:
                continue
            if entry.removed or own is not None:
                self.troubles.pop(name, None)
                if own is not None and not entry.removed and not same_upstream(own.url, entry.url):
                    self.troubles[name] = (
                        f"the config of this node lists {name} for {own.url}, and the fleet has {entry.url} under that "
                        "name: this node follows its config"
                    )
            elif repo is None or repo.source != "cli" or not _is_same(repo.url, entry.url):
                self.troubles.pop(name, None)
                await self._register(entry, Settled(name, each), renew=False)

    async def finish(self) -> None:
        """Follows what was registered since the last call: many at once, because it reads the whole registry."""
        if not self._registered:
            return
        await self.follower.follow()
        names, self._registered = self._registered, []
        # Their mirrors may already be on disk, with turns that the audit log does not know.
        await self.found.look(names)

    def _listed(self) -> list[Wanted]:
        config = self.state.config
        if self._parsed is None or self._parsed[0] is not config:
            self._parsed = config, wanted_of_config(config)
        return self._parsed[1]

    # -- removed -------------------------------------------------------------------------------------------

    async def _remove(self, entry: RepoEntry, settled: Settled) -> bool:
        repo = self.find(entry.name)
        if repo is not None and repo.source != "cli":
            # It was never the fleet's: a guest asked for it, or the config once listed it.
            await asyncio.to_thread(self.stores.fleet_repos.settle, settled)
            return True
        if repo is not None:
            is_last = not entry.purged
            await asyncio.to_thread(self.stores.registry.withdraw, entry.name, settled if is_last else None)
            await self.follower.follow()
            log.info("%s is removed, as on node %s", entry.name, entry.by)
        if entry.purged:
            self._purging.add(entry.name)
            if not await self._finish_purge(entry.name, by=entry.by):
                return False
        await asyncio.to_thread(self.stores.fleet_repos.settle, settled)
        return True

    async def _finish_purge(self, name: str, *, by: str = "") -> bool:
        """Deletes what is left of a purged repository. Returns False if its mirror is in use."""
        if name not in self._purging:
            return True
        if not await self._delete(name):
            return False
        reason = f"its repository was purged{f' on node {by}' if by else ''}"
        await asyncio.to_thread(self.stores.sessions.end_all, name, reason, time.time(), own_only=bool(by))
        await self.files.delete_others(name)
        self._purging.discard(name)
        return True

    async def _delete(self, name: str) -> bool:
        """Deletes the mirror; returns False if it is in use. A push that has begun ends first."""
        try:
            async with asyncio.timeout(LOCKED) as waiting, self.files.mirrors.locks.exclusive(name):
                waiting.reschedule(None)
                await self.files.delete_mirror(name)
        except TimeoutError:
            return False
        return True

    # -- registered ----------------------------------------------------------------------------------------

    async def _register(self, entry: RepoEntry, settled: Settled, *, renew: bool) -> bool:
        name, repo = entry.name, self.find(entry.name)
        is_other = repo is not None and not same_upstream(repo.url, entry.url)
        if repo is not None and is_other and repo.source == ALLOWED and await self._has_recordings(name):
            self.troubles[name] = (
                f"{name} of the fleet ({entry.url}) is not followed here: a guest asked for {repo.url}, which has that "
                "name on this node and recordings"
            )
            await asyncio.to_thread(self.stores.fleet_repos.settle, settled)
            return True
        if repo is not None and is_other:
            await asyncio.to_thread(self.stores.registry.withdraw, name, None)
            await self.follower.follow()
            log.warning("%s (%s) is withdrawn: the fleet has %s under that name", name, repo.url, entry.url)
        if repo is None or is_other:
            trouble = self._unusable(entry)
            if trouble is None:
                is_free, trouble = await self._make_way(entry)
                if not is_free:
                    return False
            if trouble is not None:
                if self.troubles.get(name) != trouble:
                    log.warning("%s", trouble)
                self.troubles[name] = trouble
                await asyncio.to_thread(self.stores.fleet_repos.settle, settled)
                return True
        wanted = Wanted(name, entry.url, entry.branch, entry.interval)
        follow = partial(self.stores.registry.follow_fleet, wanted, settled, enabled=entry.enabled, renew=renew)
        await asyncio.to_thread(follow)
        self._registered.append(name)
        if repo is None or is_other or renew:
            log.info("%s (%s) is registered, as on node %s", name, entry.url, entry.by)
        return True

    def _unusable(self, entry: RepoEntry) -> str | None:
        """Why this node may not follow an upstream that it would not take from its own operator either."""
        config = self.state.config
        if entry.url in self.permitted:
            return None
        try:
            wanted_repo(
                entry.url,
                name=entry.name,
                branch=entry.branch,
                interval=entry.interval,
                allow_local=config.refresh.allow_local,
                has_key=make_keyring(config).has_key,
            )
        except UsageError as error:
            return f"{entry.name} of the fleet is not followed here: {error.message}: {error.hint}"
        return None

    async def _make_way(self, entry: RepoEntry) -> tuple[bool, str | None]:
        """Deletes the mirror of another upstream without recordings; returns whether it is certain, and the trouble."""
        mirror = self.files.mirrors(entry.name)
        url = await asyncio.to_thread(configured_url, mirror.path / "config")
        if url is None or same_upstream(url, entry.url):
            return True, None
        if await self._has_recordings(entry.name):
            return True, (
                f"{entry.name} of the fleet ({entry.url}) is not followed here: on this node's disk is still the "
                f"mirror of {url} with what agents recorded in it; remove-repo {entry.name} --purge on this node "
                "deletes both, and then the fleet's repository is cloned"
            )
        if not await self._delete(entry.name):
            return False, None
        await self.files.delete_others(entry.name)
        return True, None

    async def _has_recordings(self, name: str) -> bool:
        """Whether agents recorded something in a mirror of this node, by the database or by the mirror's own refs."""
        return await asyncio.to_thread(self._recorded, name)

    def _recorded(self, name: str) -> bool:
        if self.stores.fleet_repos.has_own_turns(name):
            return True
        return any(True for _ in turns_on_disk(name, self.files.mirrors(name).path))


def _is_same(one: str, other: str) -> bool:
    """`same_upstream`, which takes its time, for a thousand repositories that have one URL here and in the fleet."""
    return one == other or same_upstream(one, other)
