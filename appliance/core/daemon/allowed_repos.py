"""Registers the repositories that `[[allow]]` allows when a guest wants them, and removes those that nobody uses."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

from appliance.core.access.allowed import AllowedUpstream, AllowedUpstreams
from appliance.core.config.credentials import TOKEN
from appliance.core.config.repositories import AllowConfig
from appliance.core.daemon.mirror_files import MirrorFiles, has_files
from appliance.core.daemon.registry_follower import RegistryFollower
from appliance.core.daemon.state import ServeState
from appliance.core.errors import GitmirrorError
from appliance.core.events.facts import AllowedRepoExpired, Publish, RefreshEnded, RepoEvent
from appliance.core.git.mirrors import Mirrors
from appliance.core.models import ALLOWED, Repo
from appliance.core.node.state_dir import refuse_foreign_leftover, wanted_repo
from appliance.core.process.disk import LOW, room_of
from appliance.core.process.endurance import Endurance
from appliance.core.recording.compose import Recording
from appliance.core.recording.policy import AGENTS
from appliance.core.recording.turns import ARCHIVE, TURNS
from appliance.core.refresh.wall_clock import SteadyClock
from appliance.core.store.allowed_repos import AllowedRepoStore, Use
from appliance.core.units import format_duration
from appliance.core.upstream import Place, place_of, same_upstream

log = logging.getLogger(__name__)

MOST_REPOSITORIES = 1000
"""The most repositories that guests may bring here, because each of them is refreshed as long as it stays."""
LOOK_EVERY = 60.0
"""The most seconds between two searches for repositories that nobody uses."""
STORED_EVERY = 600.0
"""The most seconds of use that a kill loses; less where `expire_after` is short."""
RECENT = 60.0
"""Seconds after its last use for which a repository stays, however short the disk is."""
LOCKED = 5.0
"""Seconds to wait for a busy mirror. One that stays busy is in use and does not expire."""


class AllowedRepos:
    """Registers and removes them. Implements `on_demand.Registrar`.

    Every response to a guest counts as use. Leased disks and recordings count as use for as long as they exist.
    """

    def __init__(
        self,
        state: ServeState,
        store: AllowedRepoStore,
        mirrors: Mirrors,
        follower: RegistryFollower,
        recording: Recording,
        files: MirrorFiles,
        publish: Publish,
        begin: Callable[[Coroutine[Any, Any, None], str], object],
    ) -> None:
        self._state = state
        self._store = store
        self._mirrors = mirrors
        self._follower = follower
        self._recording = recording
        self._files = files
        self._publish = publish
        self._begin = begin
        self._endurance = Endurance(log, "ending repositories that nobody uses")
        self._used: dict[int, float] = {}
        self._clock = SteadyClock()
        self._ending: set[str] = set()
        self._is_new = asyncio.Event()
        self._registering: set[asyncio.Task[Repo | None]] = set()
        self._parsed: tuple[tuple[AllowConfig, ...], bool] = ((), False)
        self._allowed = AllowedUpstreams()
        self._indexed: list[Repo] | None = None
        self._by_name: dict[str, Repo] = {}
        self._by_place: dict[Place | None, list[Repo]] = {}

    # -- what wishes need ----------------------------------------------------------------------------------

    def allowed(self) -> AllowedUpstreams:
        """What `[[allow]]` allows now."""
        config = self._state.config
        wanted = (config.allow, config.refresh.allow_local)
        if wanted != self._parsed:
            self._parsed, self._allowed = wanted, AllowedUpstreams(config.allow, allow_local=wanted[1])
        return self._allowed

    def is_open(self, upstream: AllowedUpstream) -> bool:
        """Whether a guest may have the upstream mirrored.

        It may not if reading it takes a token, if its name belongs to another upstream, or if its upstream is here
        under another name. Names that differ in case alone count as one upstream, because most hosts ignore case, and
        there are many ways to write a name.
        """
        if self._state.privacy.readers(upstream.name, upstream.url) == TOKEN:
            return False
        self._index()
        named, placed = self._by_name.get(upstream.name), self._by_place.get(place_of(upstream.url), [])
        if named is None:
            return not placed
        is_its_own = named.source == ALLOWED and named.enabled and same_upstream(named.url, upstream.url)
        return is_its_own and placed == [named]

    def find(self, upstream: AllowedUpstream) -> Repo | None:
        """The enabled repository of this upstream, under any name, or None."""
        self._index()
        for repo in self._by_place.get(place_of(upstream.url), []):
            if repo.enabled and same_upstream(repo.url, upstream.url):
                return repo
        return None

    def _index(self) -> None:
        repos = self._state.repos
        if repos is self._indexed:
            return
        self._indexed = repos
        self._by_name = {repo.name: repo for repo in repos}
        self._by_place = {}
        for repo in repos:
            self._by_place.setdefault(place_of(repo.url), []).append(repo)

    async def register(self, upstream: AllowedUpstream) -> Repo | None:
        """Registers the upstream if it is not registered; logs why and returns None if that fails. Never raises."""
        found = self.find(upstream)
        if found is not None:
            return found if found.name == upstream.name else None
        reason = self._why_not(upstream)
        if reason is not None:
            log.warning("%s is not mirrored on demand: %s", upstream.name, reason)
            return None
        # This continues even if every waiter hangs up, because a registered repository must be followed, too.
        task = asyncio.create_task(self._register(upstream), name=f"register {upstream.name}")
        self._registering.add(task)
        task.add_done_callback(self._registering.discard)
        return await asyncio.shield(task)

    def _why_not(self, upstream: AllowedUpstream) -> str | None:
        if upstream.name in self._ending:
            return "its last mirror is being removed"
        if sum(repo.source == ALLOWED for repo in self._state.repos) >= MOST_REPOSITORIES:
            return f"{MOST_REPOSITORIES} repositories that [[allow]] brought are here already"
        room = room_of(self._state.layout.state)
        if room is not None and (room.bytes < LOW or room.files == 0):
            return f"the disk of {self._state.layout.state} is nearly full"
        return None

    async def _register(self, upstream: AllowedUpstream) -> Repo | None:
        entry = upstream.entry
        try:
            wanted = wanted_repo(
                upstream.url,
                name=upstream.name,
                branch=entry.branch or None,
                interval=entry.interval,
                allow_local=self._state.config.refresh.allow_local,
            )
            await asyncio.to_thread(refuse_foreign_leftover, self._state.layout, wanted)
            repo = await asyncio.to_thread(self._store.add, wanted, entry.expire_after)
            if repo is None:
                return None
            self._used[repo.id] = time.time()
            await self._follower.follow()
            self._is_new.set()
            if self._mirrors.has(repo):
                # A mirror that `remove-repo` left may have turns that the audit log does not know.
                await self._recording.found.look([repo.name])
        except (GitmirrorError, OSError) as error:
            log.warning("%s cannot be registered: %s", upstream.name, error)
            return None
        log.info("%s: registered, because a guest or this node asked for it (%s)", repo.name, repo.url)
        return repo

    # -- use -----------------------------------------------------------------------------------------------

    def used(self, repo: Repo) -> None:
        """Notes that a guest was given something of a repository."""
        if repo.source == ALLOWED:
            self._used[repo.id] = time.time()

    def recordings_ended(self, event: RepoEvent) -> None:
        """Counts the end of recordings as use, so that the time without use begins then."""
        self.used(event.repo)

    async def write(self) -> None:
        """Stores when repositories were last used."""
        used, self._used = self._used, {}
        if used:
            try:
                await asyncio.to_thread(self._store.record, used)
            except BaseException:
                self._used = used | self._used
                raise

    async def write_last(self) -> None:
        """Stores it when `serve` stops. Only logs an error, because nothing depends on the last minutes."""
        with self._endurance.over("the last uses"):
            await self.write()

    def refreshed(self, event: RefreshEnded) -> None:
        """Removes a repository whose first clone failed: nobody registered it, and a guest may ask again."""
        if event.repo.source == ALLOWED and event.outcome.error is not None and not event.health.cloned:
            self._begin(self.give_up(event.repo), f"give up {event.repo.name}")

    async def give_up(self, repo: Repo) -> None:
        """Unregisters a repository whose first clone failed, unless the operator has made it theirs. Never raises."""
        with self._endurance.over(repo.name):
            # A mirror that `remove-repo` or a restore left may have recordings.
            if self._mirrors(repo.name).exists():
                return
            self._ending.add(repo.name)
            try:
                if await self._unregister(repo):
                    await self._delete_rest(repo.name)
                    log.warning("%s is unregistered again, because its first clone failed", repo.name)
            finally:
                self._ending.discard(repo.name)

    async def finish_ends(self) -> None:
        """Deletes what a kill left of removed repositories. Call it before guests can request them again."""
        with self._endurance.over("what a kill left"):
            for name in await asyncio.to_thread(self._store.ending):
                await self._files.delete_mirror(name)
                await self._delete_rest(name)

    async def run(self) -> None:
        """Removes repositories that nobody uses, until cancelled."""
        while True:
            pause = LOOK_EVERY
            with self._endurance.over("the registry"):
                self._is_new.clear()
                pause = await self.look()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._is_new.wait()

    async def look(self) -> float:
        """Removes what nobody uses; returns the seconds until the next search. Raises StoreError."""
        if self._state.registry_lost is not None:
            return LOOK_EVERY
        uses, step, now = await asyncio.to_thread(self._store.uses), self._clock.step(), time.time()
        if step > 0:
            # The clock was set forward: they have been unused for no longer than before.
            last = {key: max(use.used_at, self._used.get(key, 0.0)) for key, use in uses.items()}
            self._used |= {key: min(now, used_at + step) for key, used_at in last.items()}
        pause, is_write_due = LOOK_EVERY, False
        for repo in self._state.repos:
            use = uses.get(repo.id)
            if use is None:
                continue
            expire_after = self._expire_after(repo, use)
            pause = min(pause, max(expire_after / 4, 0.5))
            with self._endurance.over(repo.name):
                await self._look_at(repo, use, expire_after)
            used_at = self._used.get(repo.id, use.used_at)
            is_write_due |= abs(used_at - use.used_at) > min(STORED_EVERY, expire_after / 8)
        if is_write_due:
            await self.write()
        return pause

    async def _look_at(self, repo: Repo, use: Use, expire_after: float) -> None:
        now = time.time()
        if use.used_at > now:
            # The clock was set back.
            self.used(repo)
        last = max(use.used_at, self._used.get(repo.id, 0.0))
        if now - last < expire_after or now - await asyncio.to_thread(self._store.leased_until, repo) < expire_after:
            return
        # A disabled one is kept from guests by an operator, who would be ignored if it ended and a guest asked again.
        if not repo.enabled or await self._is_held(repo):
            self.used(repo)
        elif await self._expire(repo, since=last):
            words = f"nobody has fetched it for {format_duration(expire_after)}"
            log.info("%s is removed with its mirror: %s", repo.name, words)
            self._publish(AllowedRepoExpired(repo=repo, words=words))

    def _expire_after(self, repo: Repo, use: Use) -> float:
        """What the config says now. If no entry matches, what it said when the repository was registered."""
        found = self.allowed().of(repo.url)
        return use.expire_after if found is None else found.entry.expire_after

    def last_uses(self) -> dict[str, float]:
        """When each was last used, by name, in Unix seconds. Reads the database. Raises StoreError."""
        uses = self._store.uses()
        return {
            repo.name: max(use.used_at, self._used.get(repo.id, 0.0))
            for repo in self._state.repos
            if (use := uses.get(repo.id)) is not None
        }

    async def end_for_room(self, repo: Repo) -> bool:
        """Removes a repository because the disk is short. Returns False if it is in use, or something depends on it.

        Raises GitmirrorError, OSError.
        """
        if not repo.enabled or await self._is_held(repo) or not await self._expire(repo, since=time.time() - RECENT):
            return False
        self._publish(AllowedRepoExpired(repo=repo, words="the disk has no room for it ([storage] budget)"))
        return True

    async def _is_held(self, repo: Repo) -> bool:
        """Whether something depends on the repository."""
        # A submodule would be brought again at once.
        if self._files.workspaces.modules.needs(repo) or not self._recording.pushes.is_settled:
            return True
        if await asyncio.to_thread(self._store.is_held, repo):
            return True
        if await asyncio.to_thread(has_files, self._state.layout.attachments / repo.name):
            return True
        mirror = self._mirrors(repo.name)
        # The database may have been lost, and these refs not.
        return mirror.exists() and bool(await mirror.local_refs(AGENTS, TURNS, ARCHIVE))

    async def _expire(self, repo: Repo, since: float) -> bool:
        try:
            async with asyncio.timeout(LOCKED) as waiting, self._mirrors.locks.exclusive(repo.name):
                waiting.reschedule(None)
                # Pushes wait for the lock. Any that came first has counted as use or has left a recording.
                if self._used.get(repo.id, 0.0) > since or await self._is_held(repo):
                    return False
                # It cannot be registered again until its files are gone.
                self._ending.add(repo.name)
                if not await self._unregister(repo):
                    return False
                # Before the lock is released, so that no push that waits for it can succeed and then be lost.
                await self._files.delete_mirror(repo.name)
            await self._delete_rest(repo.name)
        except TimeoutError:
            return False
        finally:
            self._ending.discard(repo.name)
        return True

    async def _unregister(self, repo: Repo) -> bool:
        """Unregisters a repository that is to be removed. A kill after this leaves a note to delete its files."""
        if not await asyncio.to_thread(self._store.end, repo):
            return False
        await self._follower.follow()
        self._used.pop(repo.id, None)
        return True

    async def _delete_rest(self, name: str) -> None:
        await self._files.delete_others(name)
        await asyncio.to_thread(self._store.ended, name)
