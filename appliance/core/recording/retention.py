"""Ends sessions whose time is over, and moves idle ones out of the way of pushes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from appliance.core.errors import GitmirrorError
from appliance.core.git.mirror import Mirror
from appliance.core.locks import MirrorLocks
from appliance.core.models import Repo
from appliance.core.recording.policy import AGENTS
from appliance.core.recording.sessions import ARCHIVE, TURNS
from appliance.core.store.sessions import SessionStore
from appliance.core.units import format_duration

log = logging.getLogger(__name__)

LOOK_EVERY = 300.0
IDLE = 86400.0
"""Seconds without a turn after which a session's ref moves to the archive."""


class Retention:
    """Looks after the sessions of `repos()`. `keep_for` is the retention, in seconds; `on_moved` hears of what went."""

    def __init__(
        self,
        store: SessionStore,
        mirror_of: Callable[[str], Mirror],
        locks: MirrorLocks,
        *,
        repos: Callable[[], list[Repo]],
        keep_for: Callable[[], float],
        on_moved: Callable[[Repo], Awaitable[None]],
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._mirror_of = mirror_of
        self._locks = locks
        self._repos = repos
        self._keep_for = keep_for
        self._on_moved = on_moved
        self._clock = clock

    async def run(self) -> None:
        """The loop; ends by being cancelled."""
        while True:
            for repo in self._repos():
                try:
                    await self.look_after(repo)
                except (GitmirrorError, OSError) as error:
                    log.warning("%s: retention failed: %s", repo.name, error)
            await asyncio.sleep(LOOK_EVERY)

    async def look_after(self, repo: Repo) -> None:
        """Ends what is over and archives what is idle. Raises GitmirrorError."""
        now, keep_for = self._clock(), self._keep_for()
        idle = []
        for session in await asyncio.to_thread(self._store.all, repo.name):
            age = now - _timestamp(session["last_at"])
            if age > keep_for and not session["kept"]:
                await self.end(repo, session, f"ended by retention after {format_duration(keep_for)}")
            elif age > IDLE and not session["archived"]:
                idle.append(session)
        if idle:
            await self._archive(repo, idle)

    async def end(self, repo: Repo, session: dict[str, Any], reason: str) -> None:
        """Removes a session's ref and turns, then its rows; the log gets a note. Raises GitmirrorError, StoreError."""
        name, mirror = session["session"], self._mirror_of(repo.name)
        turns = await asyncio.to_thread(self._store.turns, repo.name, name)
        refs = {f"{TURNS}{turn.id}" for turn in turns} | {f"{AGENTS}{name}", f"{ARCHIVE}{name}"}
        # No push of this mirror runs meanwhile, so none adds a turn between the refs and the rows.
        async with self._locks.exclusive(repo.name):
            present = await mirror.local_refs(TURNS, AGENTS, ARCHIVE)
            await mirror.update_refs(f"delete {ref} {present[ref]}\n" for ref in sorted(refs) if ref in present)
            await asyncio.to_thread(self._store.end, repo.name, name, reason, self._clock())
        await self._on_moved(repo)
        log.info("%s: session %s %s", repo.name, name, reason)

    async def _archive(self, repo: Repo, sessions: list[dict[str, Any]]) -> None:
        """20,000 refs under `refs/agents` cost a push 0.2 s; archived ones are hidden from receive-pack."""
        mirror = self._mirror_of(repo.name)
        async with self._locks.shared(repo.name):
            present = await mirror.local_refs(AGENTS)
            moved = [s["session"] for s in sessions if present.get(f"{AGENTS}{s['session']}") == s["tip"]]
            lines = [
                f"update {ARCHIVE}{name} {present[AGENTS + name]}\ndelete {AGENTS}{name} {present[AGENTS + name]}\n"
                for name in moved
            ]
            await mirror.update_refs(lines)
            await asyncio.to_thread(self._store.set_archived, repo.name, moved, True)
        if moved:
            await self._on_moved(repo)
            log.info("%s: %d idle sessions went to the archive", repo.name, len(moved))


def _timestamp(text: str) -> float:
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC).timestamp()
