"""Ends sessions whose time is over, and moves idle ones out of the way of pushes.

Nothing here waits for pushes or stops one: every change of refs names the values it goes by, and when a push was
quicker, nothing is changed and the next look sees the session as it is then.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from appliance.core.config.settings import RecordingConfig
from appliance.core.events.facts import Publish, SessionsEnded
from appliance.core.git.command import GitError
from appliance.core.git.mirror import Mirror
from appliance.core.git.mirror_locks import MirrorLocks
from appliance.core.models import ZERO_OID, Repo
from appliance.core.process.endurance import Endurance
from appliance.core.recording.policy import AGENTS
from appliance.core.recording.quota import Quota
from appliance.core.recording.trusted_time import TrustedTime
from appliance.core.recording.turns import ARCHIVE, TURNS, TurnRecorder
from appliance.core.store.trusted_time import timestamp
from appliance.core.units import format_duration

log = logging.getLogger(__name__)

LOOK_EVERY = 300.0
IDLE = 86400.0
"""Seconds without a turn after which a session's ref moves to the archive."""
AT_ONCE = 500
"""Sessions in one transaction: each ref is a file that is synced, and a transaction has a deadline."""


class Retention:
    """Looks after the sessions of `repos()`, by the retention of `settings()`."""

    def __init__(
        self,
        book: TurnRecorder,
        quota: Quota,
        mirror_of: Callable[[str], Mirror],
        locks: MirrorLocks,
        *,
        repos: Callable[[], list[Repo]],
        settings: Callable[[], RecordingConfig],
        publish: Publish,
        time: TrustedTime,
    ) -> None:
        self._book = book
        self._store = book.store
        self._quota = quota
        self._mirror_of = mirror_of
        self._locks = locks
        self._repos = repos
        self._settings = settings
        self._publish = publish
        self._time = time

    async def run(self) -> None:
        """The loop; ends by being cancelled."""
        endurance = Endurance(log, "retention")
        while True:
            with endurance.over("turns to be booked"):
                await self._book.catch_up()
            for repo in self._repos():
                with endurance.over(repo.name):
                    await self.look_after(repo)
            await asyncio.sleep(LOOK_EVERY)

    async def look_after(self, repo: Repo) -> None:
        """Ends what is over and archives what is idle. Raises GitmirrorError."""
        if not self._mirror_of(repo.name).exists():
            return
        now = await self._time.now()
        if now is not None:
            await self._go_by(now, repo)
        if left := await self._book.drop_leftovers(repo.name):
            log.info("%s: removed %d turn refs that a kill had left", repo.name, left)

    async def _go_by(self, now: float, repo: Repo) -> None:
        keep_for = self._settings().retention
        over, idle = [], []
        for session in await asyncio.to_thread(self._store.all, repo.name):
            age = now - timestamp(session["last_at"])
            if age > keep_for and not session["kept"]:
                over.append(session)
            elif age > IDLE and not session["archived"]:
                idle.append(session)
        await self.end(repo, over, f"ended by retention after {format_duration(keep_for)}")
        await self._archive(repo, idle)

    async def end(self, repo: Repo, sessions: Sequence[dict[str, Any]], reason: str) -> None:
        """Removes the refs and turns of sessions, then their rows; the log gets a note for each.

        Raises GitError when one of them was written meanwhile: then it, and others with it, is as it was.
        """
        try:
            for some in _portions(sessions):
                async with self._locks.shared(repo.name):
                    await self._end(repo, some, reason)
        finally:
            if sessions:
                self._quota.used_bytes = await asyncio.to_thread(self._store.recorded_bytes)
                self._publish(SessionsEnded(repo=repo))

    async def _end(self, repo: Repo, sessions: Sequence[dict[str, Any]], reason: str) -> None:
        mirror = self._mirror_of(repo.name)
        present = await mirror.local_refs(TURNS, AGENTS, ARCHIVE) if mirror.exists() else {}
        lines, ended = [], {}
        for session in sessions:
            name = session["session"]
            attempts = await asyncio.to_thread(self._store.applied, repo.name, name)
            ended[name] = max(attempts, default=0)
            # The agents' ref goes by its value, or must still not be there: a turn in between undoes all of this.
            agents = f"{AGENTS}{name}"
            tip = present.get(agents, ZERO_OID)
            if tip not in (ZERO_OID, session["tip"]):
                raise GitError(f"the session {name} is being written just now")
            lines.append(f"verify {agents} {ZERO_OID}\n" if tip == ZERO_OID else f"delete {agents} {tip}\n")
            turns = {f"{TURNS}{attempt}": commit for attempt, commit in attempts.items()}
            refs = [f"{ARCHIVE}{name}", *(ref for ref, commit in turns.items() if present.get(ref) == commit)]
            lines += [f"delete {ref} {present[ref]}\n" for ref in refs if ref in present]
        if mirror.exists():
            await mirror.update_refs(lines)
        await asyncio.to_thread(self._store.end, repo.name, ended, reason, self._time.clock())
        for name in ended:
            log.info("%s: session %s %s", repo.name, name, reason)

    async def _archive(self, repo: Repo, sessions: Sequence[dict[str, Any]]) -> None:
        """20,000 refs under `refs/agents` cost a push 0.2 s; archived ones are hidden from receive-pack."""
        mirror, count = self._mirror_of(repo.name), 0
        for some in _portions(sessions):
            async with self._locks.shared(repo.name):
                present = await mirror.local_refs(AGENTS, ARCHIVE)
                there = [each["session"] for each in some if present.get(f"{ARCHIVE}{each['session']}") == each["tip"]]
                moved = [each["session"] for each in some if present.get(f"{AGENTS}{each['session']}") == each["tip"]]
                try:
                    # One transaction: git writes all that is new before it deletes, so a kill leaves both, never none.
                    tips = {name: present[f"{AGENTS}{name}"] for name in moved}
                    lines = [f"update {ARCHIVE}{name} {tip}\n" for name, tip in tips.items()]
                    await mirror.update_refs(lines + [f"delete {AGENTS}{name} {tip}\n" for name, tip in tips.items()])
                except GitError as error:
                    log.info("%s: idle sessions stay for now: %s", repo.name, error.message)
                    continue
                archived = [*moved, *(name for name in there if f"{AGENTS}{name}" not in present)]
                await asyncio.to_thread(self._store.set_archived, repo.name, archived, True)
            count += len(archived)
        if count:
            log.info("%s: %d idle sessions went to the archive", repo.name, count)
            self._publish(SessionsEnded(repo=repo))


def _portions(sessions: Sequence[dict[str, Any]]) -> Iterator[Sequence[dict[str, Any]]]:
    for first in range(0, len(sessions), AT_ONCE):
        yield sessions[first : first + AT_ONCE]
