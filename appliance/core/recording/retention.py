"""Ends sessions whose retention is over, and moves idle ones where they do not slow pushes down.

Nothing here waits for a push or blocks one. Every change of refs names the values that it expects; if a push was
faster, nothing changes, and the next pass sees the session in its new state.
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
"""The most sessions in one transaction, because each ref is a file to sync and a transaction has a deadline."""


class Retention:
    """Ends and archives sessions of `repos()`, according to the retention in `settings()`."""

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
        """The loop; runs until it is cancelled."""
        endurance = Endurance(log, "retention")
        while True:
            with endurance.over("unrecorded turns"):
                await self._book.catch_up()
            for repo in self._repos():
                with endurance.over(repo.name):
                    await self.look_after(repo)
            await asyncio.sleep(LOOK_EVERY)

    async def look_after(self, repo: Repo) -> None:
        """Ends a repository's old sessions and archives its idle ones. Raises GitmirrorError."""
        if not self._mirror_of(repo.name).exists():
            return
        now = await self._time.now()
        if now is not None:
            await self._apply_retention(now, repo)
        if removed := await self._book.drop_leftovers(repo.name):
            log.info("%s: removed %d turn refs that a kill had left", repo.name, removed)

    async def _apply_retention(self, now: float, repo: Repo) -> None:
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
        """Deletes the refs and turns of sessions, then their rows, and adds a note to the audit log for each.

        Raises GitError if one of them was written meanwhile; that session and others in its batch then stay as they
        were.
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
            # Delete the agents' ref only at its known value, or verify that it is still absent, so that a turn in
            # between cancels the transaction.
            agents = f"{AGENTS}{name}"
            tip = present.get(agents, ZERO_OID)
            if tip not in (ZERO_OID, session["tip"]):
                raise GitError(f"the session {name} is being written right now")
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
        """Moves idle sessions to the archive, which receive-pack hides.

        Under `refs/agents`, 20,000 refs cost a push 0.2 s.
        """
        mirror, count = self._mirror_of(repo.name), 0
        for some in _portions(sessions):
            async with self._locks.shared(repo.name):
                present = await mirror.local_refs(AGENTS, ARCHIVE)
                there = [row["session"] for row in some if present.get(f"{ARCHIVE}{row['session']}") == row["tip"]]
                moved = [row["session"] for row in some if present.get(f"{AGENTS}{row['session']}") == row["tip"]]
                try:
                    # In one transaction git creates refs before it deletes any, so a kill leaves both, never none.
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


def _portions(sessions: Sequence[dict[str, Any]]) -> Iterator[Sequence[dict[str, Any]]]:
    for first in range(0, len(sessions), AT_ONCE):
        yield sessions[first : first + AT_ONCE]
