"""Reads what each turn changed and says, so that sessions are found by it, in the background (decision 029).

A push never waits for it, and a turn that cannot be read is no error of the push. Which turns are to be read is in the
database, so a kill loses none.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

from appliance.core.events.facts import MirrorHealed
from appliance.core.events.fleet_facts import TurnsBrought
from appliance.core.git.command import GitError
from appliance.core.git.failures import speaks_of_damage
from appliance.core.git.mirror import Mirror
from appliance.core.git.mirror_locks import MirrorLocks
from appliance.core.git.stored_refs import stored_refs
from appliance.core.git.turn_contents import MOST_PATHS, changed_paths, messages_of, present_commits
from appliance.core.process.endurance import EXPECTED, Endurance
from appliance.core.recording.turns import TURNS
from appliance.core.store.cursors import LARGEST
from appliance.core.store.turn_index import TurnContents, TurnIndexStore, TurnToIndex

log = logging.getLogger(__name__)

LOOK_EVERY = 300.0
"""Seconds after which turns that could not be read are tried again."""
MOST_STORED = 5_000_000
"""Paths of all turns together, about 0.5 GB. A push of 1 KB can change 40,000 paths by renaming a directory."""
COUNT_EVERY = 60.0
"""Seconds for which the count of stored paths is used, because counting takes a while with many turns."""
UNKNOWN = TurnContents(known_to=b"")
"""Of a turn whose paths are not read: it may have changed any."""
NOTHING = TurnContents()


class TurnIndexer:
    """Fills `store` from the mirrors that `mirror_of` finds."""

    def __init__(self, store: TurnIndexStore, mirror_of: Callable[[str], Mirror], locks: MirrorLocks) -> None:
        self.store = store
        self._mirror_of = mirror_of
        self._locks = locks
        self._wake = asyncio.Event()
        self._healed: set[str] = set()
        self._brought: set[str] = set()
        self._retry_at: dict[int, float] = {}
        self._room = 0
        self._counted_at: float | None = None

    def wake(self) -> None:
        """Says that a turn was recorded."""
        self._wake.set()

    def healed(self, event: MirrorHealed) -> None:
        """Has turns read again that were damaged before the mirror was healed."""
        self._healed.add(event.repo.name)
        self._wake.set()

    def brought(self, event: TurnsBrought) -> None:
        """Has turns of other nodes read whose objects are here now."""
        self._brought.add(event.repo.name)
        self._wake.set()

    async def run(self) -> None:
        """The loop; runs until it is cancelled."""
        endurance = Endurance(log, "reading turns that sessions are found by")
        while True:
            self._wake.clear()
            with endurance.over("the database"):
                for repo in list(self._healed):
                    await asyncio.to_thread(self.store.forget_empty, repo)
                    self._healed.discard(repo)
                for repo in list(self._brought):
                    # Before the mirror is read, so that what is brought meanwhile has it read again.
                    self._brought.discard(repo)
                    try:
                        await asyncio.to_thread(self._take_brought, repo)
                    except EXPECTED:
                        self._brought.add(repo)
                        raise
                await self.catch_up()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY):
                    await self._wake.wait()

    async def catch_up(self, until: float | None = None) -> None:
        """Reads every turn that was not read yet, newest first, up to the monotonic time `until`. Raises StoreError.

        A turn that is recorded meanwhile comes first: reading all turns of an older database takes minutes.
        """
        below = LARGEST
        while turns := await asyncio.to_thread(self.store.missing, below):
            for turn in turns:
                if until is not None and time.monotonic() > until:
                    return
                if self._wake.is_set():
                    self._wake.clear()
                    below = LARGEST
                    break
                below = turn.id
                if time.monotonic() >= self._retry_at.get(turn.id, 0):
                    await self._index(turn)

    def _take_brought(self, repo: str) -> None:
        present = stored_refs(self._mirror_of(repo).path, TURNS)
        for turn_id in self.store.away(repo):
            if f"{TURNS}{turn_id}" in present:
                self.store.brought(turn_id)

    async def _index(self, turn: TurnToIndex) -> None:
        mirror = self._mirror_of(turn.repo)
        if not mirror.exists():
            self._retry_at[turn.id] = time.monotonic() + LOOK_EVERY
            return
        try:
            contents = await self._read(mirror, turn)
            if contents is NOTHING:
                # Packs that a repack replaces while git reads them look like damage; the lock keeps it away.
                async with self._locks.shared(turn.repo):
                    contents = await self._read(mirror, turn)
        except EXPECTED as error:
            log.warning("turn %d of %s in %s cannot be searched yet: %s", turn.id, turn.session, turn.repo, error)
            self._retry_at[turn.id] = time.monotonic() + LOOK_EVERY
            return
        self._retry_at.pop(turn.id, None)
        if await asyncio.to_thread(self.store.record, turn, contents):
            self._room -= len(contents.paths)

    async def _read(self, mirror: Mirror, turn: TurnToIndex) -> TurnContents:
        """What a turn is found by; NOTHING if its commit is gone or damaged. Raises GitError."""
        try:
            commits = [commit for commit in (turn.commit, turn.base, turn.previous) if commit]
            present = await present_commits(mirror, *commits)
            if not {turn.commit, turn.base or turn.commit} <= present:
                return NOTHING
            # The turn before may be lost; then what this one did since the base has what both did.
            without = [commit for commit in (turn.base, turn.previous) if commit and commit in present]
            old = without[-1] if without else None
            changed = await changed_paths(mirror, old, turn.commit, min(MOST_PATHS, await self._room_left()))
            messages = await messages_of(mirror, turn.commit, *without)
        except GitError as error:
            if error.timed_out:
                log.warning("turn %d of %s in %s takes too long to read: %s", turn.id, turn.session, turn.repo, error)
                return UNKNOWN
            if speaks_of_damage(error.stderr):
                return NOTHING
            raise
        last = changed.paths[-1] if changed.paths else b""
        return TurnContents(changed.paths, None if changed.all_of_them else last, messages)

    async def _room_left(self) -> int:
        now = time.monotonic()
        if self._counted_at is None or now > self._counted_at + COUNT_EVERY:
            self._room = MOST_STORED - await asyncio.to_thread(self.store.path_count)
            self._counted_at = now
        return max(0, self._room)
