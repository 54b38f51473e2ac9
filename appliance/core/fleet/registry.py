"""The registry of the fleet: one key-value bucket that every node follows, and that every node's changes go to.

A change of an operator goes to the bucket first, by compare-and-set, and then into this node's database. While the
fleet is away it goes into the database and waits. What other nodes changed is applied as it comes; after each
connection the whole bucket is read, so nothing is missed. An entry that cannot be applied now is tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Protocol

from appliance.core.errors import Conflict, TryLater
from appliance.core.fleet.bucket import Overtaken, RegistryBucket
from appliance.core.fleet.link import FleetAway, FleetLink
from appliance.core.fleet.messages import RepoEntry
from appliance.core.fleet.registry_rules import (
    Remote,
    SameUrl,
    Verdict,
    judge,
    outgoing,
    words_of_overtaken,
)
from appliance.core.process.endurance import EXPECTED, Endurance
from appliance.core.store.fleet_repos import FleetRepoStore, KnownEntry, Pending, Settled

log = logging.getLogger(__name__)

CHECK_EVERY = 5.0
"""Seconds between two looks at whether the watcher missed something, and whether the bucket is still the same."""
LATE_EVERY = 1.0
"""Seconds between two tries to apply what could not be applied."""
RETRY_EVERY = 0.5
"""Seconds before the bucket is read again after an error."""
MOST_TRIES = 8
"""How often a change is tried that other nodes' changes overtake. Each time, another one succeeded."""

Make = Callable[[Remote], RepoEntry | None]
"""Makes the new entry of what the bucket has, None to change nothing. May raise GitmirrorError."""


class LocalRegistry(Protocol):
    """What the registry of the fleet must know of this node's own."""

    def is_own(self, name: str) -> bool:
        """Whether the config lists a name, so that the fleet's entry is ignored."""

    async def apply(
        self, remote: Remote, known: KnownEntry | None, *, pending: Pending | None, overtaken: str | None
    ) -> bool:
        """Makes this node's registration what the fleet has, and notes that. Returns False if it is to be tried again.

        `known` is the entry that was applied before. Raises GitmirrorError, OSError.
        """

    async def finish(self) -> None:
        """Ends a number of calls of `apply`: what they registered is served from then on. Raises as they do."""

    async def reconsider(self, known: Mapping[str, KnownEntry]) -> None:
        """Applies entries again that this node could not follow, if it can now. Raises GitmirrorError, OSError."""


class FleetRegistry:
    """This node's part in the registry of the fleet of `link`. `local` applies what the bucket has."""

    def __init__(
        self, link: FleetLink, bucket: RegistryBucket, store: FleetRepoStore, local: LocalRegistry, same_url: SameUrl
    ) -> None:
        self._link = link
        self._bucket = bucket
        self._store = store
        self._local = local
        self._same_url = same_url
        self._one_at_a_time = asyncio.Lock()
        self._woken = asyncio.Event()
        self._late: dict[str, Remote] = {}
        self._is_read = False
        self._ups = 0
        self._endurance = Endurance(log, "following the registry of the fleet", bugs=True)
        link.on_up(self._came_up)

    @property
    def is_usable(self) -> bool:
        """Whether changes can go to the bucket now."""
        return self._link.is_up and self._is_read

    def wake(self, _event: object = None) -> None:
        """Has what waits looked at now."""
        self._woken.set()

    def _came_up(self) -> None:
        self._ups += 1
        # Until the whole bucket is read, because it may be another one.
        self._is_read = False

    # -- changes of this node's operators ------------------------------------------------------------------

    async def claim(self, name: str, make: Make) -> Remote | None:
        """Changes the entry of a name by `make` and applies it here; returns what the fleet has then.

        None if the fleet is away: then the caller changes this node's registry, and the change waits. Raises what
        `make` raises, Conflict for an entry that cannot be read, TryLater, StoreError.
        """
        if not self.is_usable:
            return None
        async with self._one_at_a_time:
            try:
                return await self._claim(name, make)
            except FleetAway as away:
                log.warning("%s: the change waits: %s", name, away.message)
                return None

    async def _claim(self, name: str, make: Make) -> Remote:
        for _ in range(MOST_TRIES):
            remote = await self._bucket.get(name)
            if remote.is_foreign:
                raise Conflict(
                    f"the fleet's entry of {name} cannot be read by this version",
                    hint="upgrade this node; what no gitmirror wrote has to be deleted from the bucket "
                    f"{self._link.names.registry}",
                )
            # What was changed before comes first.
            await self._take(remote, name)
            entry = make(remote)
            if entry is None:
                return remote
            try:
                claimed = Remote(await self._bucket.put(entry, remote.revision), entry)
            except Overtaken:
                continue
            await self._take(claimed, name)
            return claimed
        raise TryLater(f"other nodes change {name} all the time", retry_after=5)

    # -- what the bucket has -------------------------------------------------------------------------------

    async def run(self) -> None:
        """Follows the bucket and sends what waits, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._tend())
            tasks.create_task(self._watch())

    async def _watch(self) -> None:
        while True:
            await self._link.wait_up()
            with self._endurance.over("reading it"):
                await self._follow()
            await asyncio.sleep(RETRY_EVERY)

    async def _follow(self) -> None:
        """Reads the whole bucket and then each change, until the connection is lost or something was missed."""
        ups = self._ups
        made, newest = await self._bucket.identify()
        async with self._bucket.watch() as watcher:
            found, seen = await watcher.whole()
            async with self._one_at_a_time:
                await self.take_whole(made, found)
            self._is_read = ups == self._ups
            self.wake()
            seen, checked_at, missed = max(seen, newest), time.monotonic(), 0
            while self._link.is_up and ups == self._ups:
                updates = await watcher.updates(LATE_EVERY)
                if updates:
                    seen = max(seen, *(update.revision for update in updates.values()))
                    async with self._one_at_a_time:
                        await self._take_updates(updates)
                if time.monotonic() - checked_at >= CHECK_EVERY:
                    checked_at = time.monotonic()
                    now, newest = await self._bucket.identify()
                    missed = missed + 1 if newest > seen else 0
                    if now != made or missed > 1:
                        log.warning("the registry of the fleet is read again, because a change was missed")
                        return

    async def take_whole(self, made: str, found: Mapping[str, Remote]) -> None:
        """Applies a whole bucket, of the id `made`; the caller holds the lock. Raises StoreError."""
        if await asyncio.to_thread(self._store.enter, made):
            name = self._link.config.name
            log.info("fleet %s: its registry is new here, and this node offers its repositories", name)
            self._late.clear()
        known = await asyncio.to_thread(self._store.known)
        await self._take_updates({**{name: Remote() for name in known.keys() - found.keys()}, **found})

    async def _take_updates(self, updates: Mapping[str, Remote]) -> None:
        gone = [name for name, remote in updates.items() if remote.revision == 0 or remote.is_gone]
        if gone:
            # Nodes remove by an entry that says so, so these were deleted by somebody else.
            await asyncio.to_thread(self._store.offer_again, gone)
            self.wake()
        known, pending = await self._tables(*updates)
        for name, remote in updates.items():
            if remote.entry is not None:
                await self._settle(name, remote, known.get(name), pending.get(name))
        await self._local.finish()

    async def _tables(self, *names: str) -> tuple[dict[str, KnownEntry], dict[str, Pending]]:
        """What of these names was applied, of all without names, and what waits."""
        return await asyncio.to_thread(lambda: (self._store.known(*names), self._store.pending()))

    async def _take(self, remote: Remote, name: str) -> None:
        """Applies what the bucket has of one name. Raises what applying it raises."""
        known, pending = await self._tables(name)
        await self._decide(name, remote, known.get(name), pending.get(name))
        await self._local.finish()

    async def _settle(self, name: str, remote: Remote, known: KnownEntry | None, pending: Pending | None) -> None:
        """Applies an entry, or remembers to try it again."""
        with self._endurance.over(name):
            try:
                await self._decide(name, remote, known, pending)
            except FleetAway:
                raise
            except EXPECTED:
                self._late[name] = remote
                raise

    async def _decide(self, name: str, remote: Remote, known: KnownEntry | None, pending: Pending | None) -> None:
        """Sends a change that waits or applies what the bucket has, whichever is right by the rules."""
        if pending is not None and self._local.is_own(name):
            # The config has listed it since.
            await asyncio.to_thread(self._store.drop, pending)
            pending = None
        for _ in range(MOST_TRIES):
            if pending is None:
                if remote.entry is not None and remote.revision > (known.revision if known else 0):
                    await self._apply(remote, known, None, None)
                return
            verdict = judge(pending, known, remote, self._link.node, self._same_url)
            if verdict is Verdict.SEND:
                entry = outgoing(pending, known, self._link.node)
                try:
                    revision = await self._bucket.put(entry, remote.revision)
                except Overtaken:
                    remote = await self._bucket.get(name)
                    if remote.is_foreign:
                        return
                    continue
                sent = Settled(name, KnownEntry(revision, asdict(entry)), pending=pending.id)
                await asyncio.to_thread(self._store.settle, sent)
                return
            if remote.entry is None:
                await asyncio.to_thread(self._store.drop, pending)
                return
            words = words_of_overtaken(pending, remote.entry) if verdict is Verdict.OVERTAKEN else None
            await self._apply(remote, known, pending, words)
            return

    async def _apply(
        self, remote: Remote, known: KnownEntry | None, pending: Pending | None, words: str | None
    ) -> None:
        assert remote.entry is not None
        name = remote.entry.name
        # What is followed here, and what is told, may be another one now.
        self.wake()
        if await self._local.apply(remote, known, pending=pending, overtaken=words):
            self._late.pop(name, None)
        else:
            self._late[name] = remote

    # -- what waits ----------------------------------------------------------------------------------------

    async def _tend(self) -> None:
        """Sends what waits, and applies what could not be applied before."""
        is_done = False
        while True:
            if self._woken.is_set() or self._late or not is_done:
                self._woken.clear()
                is_done = False
                with self._endurance.over("what waits"):
                    is_done = await self.tend()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LATE_EVERY):
                    await self._woken.wait()

    async def tend(self) -> bool:
        """Does so once; returns whether nothing is left that can go out now. Raises FleetAway, StoreError."""
        async with self._one_at_a_time:
            known, pending = await self._tables()
            is_quiet = not (self._late or pending)
            for name, remote in list(self._late.items()):
                await self._settle(name, remote, known.get(name), pending.get(name))
            if self.is_usable:
                for name, waiting in pending.items():
                    remote = await self._bucket.get(name)
                    if not remote.is_foreign:
                        await self._settle(name, remote, known.get(name), waiting)
            if not is_quiet:
                known, pending = await self._tables()
            ours = {name: each for name, each in known.items() if name not in pending and name not in self._late}
            await self._local.reconsider(ours)
            await self._local.finish()
            return not (pending and self.is_usable)
