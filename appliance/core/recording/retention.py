"""Ends sessions that are older than the retention, and archives idle ones so that they do not slow pushes down.

Nothing here waits for a push or stops one. Every change of refs names the old values that it expects. If a push was
quicker, nothing is changed, and the next round sees the session in its new state. That an end has begun is stored
before its refs are deleted, so an end that a kill interrupted is finished by the next round, and is no loss meanwhile.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from appliance.core.config.settings import RecordingConfig
from appliance.core.errors import GitmirrorError
from appliance.core.events.facts import Publish, SessionsEnded
from appliance.core.git.command import GitError
from appliance.core.git.mirror import Mirror
from appliance.core.git.mirror_locks import MirrorLocks
from appliance.core.models import ZERO_OID, Repo
from appliance.core.process.endurance import Endurance
from appliance.core.recording.attachments import Attachments
from appliance.core.recording.fleet_time import FleetTime, NoFleetTime
from appliance.core.recording.policy import AGENTS
from appliance.core.recording.quota import Quota
from appliance.core.recording.trusted_time import TrustedTime
from appliance.core.recording.turns import ARCHIVE, TURNS, TurnRecorder, moves_off
from appliance.core.store.begun_ends import BegunEnd, BegunEndStore
from appliance.core.store.fleet_turns import FIRST_AWAY
from appliance.core.store.trusted_time import timestamp
from appliance.core.units import format_duration

log = logging.getLogger(__name__)

LOOK_EVERY = 300.0
"""Seconds between two rounds."""
IDLE = 86400.0
"""Seconds without a turn after which a session's ref moves to the archive."""
OTHERS_AFTER = 4 * LOOK_EVERY
"""Seconds for which the other nodes leave an old session to the one that took its last turn; some wait twice that."""
AT_ONCE = 500
"""Sessions per transaction. git syncs a file for each ref, and a transaction has a deadline."""


class Retention:
    """Ends and archives the sessions of `repos()` by the settings of `settings()`."""

    def __init__(
        self,
        recorder: TurnRecorder,
        begun: BegunEndStore,
        quota: Quota,
        mirror_of: Callable[[str], Mirror],
        locks: MirrorLocks,
        attachments: Attachments,
        *,
        repos: Callable[[], list[Repo]],
        settings: Callable[[], RecordingConfig],
        publish: Publish,
        time: TrustedTime,
        node: str | None = None,
        fleet: FleetTime | None = None,
    ) -> None:
        self._recorder = recorder
        self._store = recorder.store
        self._begun = begun
        self._quota = quota
        self._mirror_of = mirror_of
        self._locks = locks
        self._attachments = attachments
        self._repos = repos
        self._settings = settings
        self._publish = publish
        self._time = time
        self._node = node
        self._fleet = fleet or NoFleetTime()
        self._endurance = Endurance(log, "retention")
        self._ending = asyncio.Lock()
        """Held by each end, so that one that has begun and is not finished was interrupted."""

    async def run(self) -> None:
        """Runs rounds until cancelled."""
        endurance = self._endurance
        with endurance.over("attachments that a kill left"):
            await self._attachments.sweep()
        while True:
            with endurance.over("turns to be recorded"):
                await self._recorder.catch_up()
            for repo in self._repos():
                with endurance.over(repo.name):
                    await self.look_after(repo)
            await asyncio.sleep(LOOK_EVERY)

    async def look_after(self, repo: Repo) -> None:
        """Ends old sessions and archives idle ones of one repository. Raises GitmirrorError."""
        if not self._mirror_of(repo.name).exists():
            return
        async with self._ending:
            for begun in await asyncio.to_thread(self._begun.of, repo.name):
                await self._finish(repo, begun)
        now = await self._time.now()
        if now is not None:
            await self._end_and_archive(repo, now)
        if removed := await self._recorder.drop_leftovers(repo.name):
            log.info("%s: removed %d turn refs that a kill had left", repo.name, removed)

    async def _end_and_archive(self, repo: Repo, now: float) -> None:
        keep_for = self._settings().retention
        old, idle = [], []
        for session in await asyncio.to_thread(self._store.all, repo.name):
            age = now - timestamp(session["last_at"])
            if age > keep_for + self._later(session) and not session["kept"]:
                if await self._is_old(session, keep_for):
                    old.append(session)
            elif age > IDLE and not session["archived"]:
                idle.append(session)
        await self.end(repo, old, f"ended by retention after {format_duration(keep_for)}", spare=True)
        await self._archive(repo, idle)

    async def _is_old(self, session: dict[str, Any], keep_for: float) -> bool:
        """Whether the fleet's servers have had a session for that long, too: the clock of its node may have been wrong.

        Without them, only this node's own sessions are old.
        """
        if self._node is None:
            return True
        is_own, now = self._is_own(session), self._fleet.now()
        if now is None:
            return is_own
        _, place = await asyncio.to_thread(self._store.extent, session["repo"], session["session"])
        try:
            stored = await self._fleet.stored_at(place)
        except GitmirrorError:
            return is_own
        return stored is None or now - stored > keep_for

    def _later(self, session: dict[str, Any]) -> float:
        """Seconds that the end of a session waits here for the node that took its last turn, which ends it everywhere.

        If that one is gone, the others do not all end it at the same moment.
        """
        if self._is_own(session):
            return 0.0
        place = hashlib.sha256(f"{self._node}\n{session['repo']}\n{session['session']}".encode()).digest()
        return OTHERS_AFTER * (1 + int.from_bytes(place[:4]) / 2**32)

    async def end(self, repo: Repo, sessions: Sequence[dict[str, Any]], reason: str, *, spare: bool = False) -> None:
        """Removes the refs and turns of sessions, then their rows; adds a note to the log for each.

        With `spare`, leaves out those that are kept by now, and those that a push is writing. Otherwise raises GitError
        if a push wrote one of them meanwhile. That session and the others of its transaction are then unchanged.
        """
        async with self._ending:
            await self._end_all(repo, sessions, reason, spare=spare)

    async def _end_all(
        self, repo: Repo, sessions: Sequence[dict[str, Any]], reason: str, *, spare: bool = False
    ) -> None:
        try:
            for batch in _batches(sessions):
                async with self._locks.shared(repo.name):
                    await self._end(repo, batch, reason, spare=spare)
        finally:
            if sessions:
                with self._endurance.over(f"attachments of {repo.name}"):
                    await self._attachments.sweep(repo.name)
                self._quota.used_bytes = await asyncio.to_thread(self._store.recorded_bytes)
                self._publish(SessionsEnded(repo=repo))

    async def _end(self, repo: Repo, sessions: Sequence[dict[str, Any]], reason: str, *, spare: bool) -> None:
        mirror = self._mirror_of(repo.name)
        present = await mirror.local_refs(TURNS, AGENTS, ARCHIVE) if mirror.exists() else {}
        changes, ended, upto = {}, {}, {}
        for session in sessions:
            name = session["session"]
            recorded, upto[name] = await asyncio.to_thread(self._store.extent, repo.name, name)
            attempts = await asyncio.to_thread(self._store.applied, repo.name, name)
            # The agents' ref must still have this value, or be absent; otherwise a push was quicker, and all fails. It
            # is at an older turn if another node took the last one.
            agents = f"{AGENTS}{name}"
            tip = present.get(agents, ZERO_OID)
            last = next(reversed(recorded.values()), session["tip"])
            expected = (session["tip"],) if self._is_own(session) else (session["tip"], *recorded.values())
            if tip not in (ZERO_OID, *expected) or last != session["tip"]:
                if spare:
                    log.info("%s: session %s is not ended yet, because a push is writing it", repo.name, name)
                    continue
                raise GitError(f"a push is writing the session {name} at this moment")
            ended[name] = _newest(attempts, recorded)
            lines = [f"verify {agents} {ZERO_OID}\n" if tip == ZERO_OID else f"delete {agents} {tip}\n"]
            turns = {f"{TURNS}{attempt}": commit for attempt, commit in (recorded | attempts).items()}
            refs = [f"{ARCHIVE}{name}", *(ref for ref, commit in turns.items() if present.get(ref) == commit)]
            changes[name] = lines + [f"delete {ref} {present[ref]}\n" for ref in refs if ref in present]
        begun = await asyncio.to_thread(self._begun.begin, repo.name, ended, upto, reason, spare_kept=spare)
        ended = {name: attempt for name, attempt in ended.items() if name in begun}
        if mirror.exists():
            try:
                await mirror.update_refs([line for name in ended for line in changes[name]])
            except GitError as error:
                # A git that was killed at its deadline may have deleted some.
                if not error.timed_out:
                    await asyncio.to_thread(self._begun.take_back, repo.name, ended)
                raise
        await asyncio.to_thread(self._store.end, repo.name, ended, reason, self._time.clock(), upto)
        for name in ended:
            log.info("%s: session %s %s", repo.name, name, reason)

    async def _finish(self, repo: Repo, begun: BegunEnd) -> None:
        """Finishes an end that a kill interrupted. What was recorded since, here or on another node, is a new session.

        Raises GitError if a push is writing the session.
        """
        name = begun.session
        session = await asyncio.to_thread(self._store.get, repo.name, name)
        if session is None:
            await asyncio.to_thread(self._begun.take_back, repo.name, [name])
            return
        attempts = await asyncio.to_thread(self._store.applied, repo.name, name)
        recorded, upto = await asyncio.to_thread(self._store.extent, repo.name, name)
        if _newest(attempts, recorded) <= begun.last_attempt and upto <= begun.upto:
            await self._end_all(repo, [session], begun.reason)
            return
        last, places = {name: begun.last_attempt}, {name: begun.upto}
        left = await asyncio.to_thread(self._begun.later, repo.name, begun)
        ended = {*recorded.values(), *(commit for number, commit in attempts.items() if number <= begun.last_attempt)}
        mirror = self._mirror_of(repo.name)
        async with self._locks.shared(repo.name):
            present = await mirror.local_refs(f"{AGENTS}{name}", f"{ARCHIVE}{name}")
            await mirror.update_refs(moves_off(name, present, ended, left))
        # Afterwards, because the note that the end has begun goes with the rows.
        await asyncio.to_thread(self._store.end, repo.name, last, begun.reason, self._time.clock(), places)
        self._publish(SessionsEnded(repo=repo))

    def _is_own(self, session: dict[str, Any]) -> bool:
        """Whether this node took the last turn of a session; its ref is at that turn then, unless a push moves it."""
        return self._node is None or session["node"] in (None, self._node)

    async def _tips(self, session: dict[str, Any]) -> Collection[str]:
        """The commits at one of which the ref of a session is, unless a push is moving it."""
        if self._is_own(session):
            return (session["tip"],)
        recorded, _ = await asyncio.to_thread(self._store.extent, session["repo"], session["session"])
        return (session["tip"], *recorded.values())

    async def _archive(self, repo: Repo, sessions: Sequence[dict[str, Any]]) -> None:
        """Hides idle sessions from receive-pack, because 20,000 refs under `refs/agents` slow a push down by 0.2 s."""
        mirror, count = self._mirror_of(repo.name), 0
        for batch in _batches(sessions):
            async with self._locks.shared(repo.name):
                present = await mirror.local_refs(AGENTS, ARCHIVE)
                expected = {session["session"]: await self._tips(session) for session in batch}
                there = [name for name, tips in expected.items() if present.get(f"{ARCHIVE}{name}") in tips]
                moved = [name for name, tips in expected.items() if present.get(f"{AGENTS}{name}") in tips]
                try:
                    # In one transaction git writes all new refs before it deletes, so a kill leaves both, never none.
                    tips = {name: present[f"{AGENTS}{name}"] for name in moved}
                    lines = [f"update {ARCHIVE}{name} {tip}\n" for name, tip in tips.items()]
                    await mirror.update_refs(lines + [f"delete {AGENTS}{name} {tip}\n" for name, tip in tips.items()])
                except GitError as error:
                    log.info("%s: idle sessions are not archived yet: %s", repo.name, error.message)
                    continue
                archived = [*moved, *(name for name in there if f"{AGENTS}{name}" not in present)]
                await asyncio.to_thread(self._store.set_archived, repo.name, archived, True)
            count += len(archived)
        if count:
            log.info("%s: archived %d idle sessions", repo.name, count)
            self._publish(SessionsEnded(repo=repo))


def _newest(attempts: Collection[int], recorded: Collection[int]) -> int:
    """The highest audit id of a session's turns that this node took, booked or not.

    An attempt that began before an end of the session, and was applied after it, is not among `attempts`.
    """
    return max([*attempts, *(number for number in recorded if number < FIRST_AWAY)], default=0)


def _batches(sessions: Sequence[dict[str, Any]]) -> Iterator[Sequence[dict[str, Any]]]:
    for first in range(0, len(sessions), AT_ONCE):
        yield sessions[first : first + AT_ONCE]
