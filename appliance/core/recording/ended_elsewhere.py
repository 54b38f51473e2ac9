"""Cleans up after sessions that another node of the fleet ended: their refs in the mirrors, and attachments on disk."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from appliance.core.errors import GitmirrorError
from appliance.core.events.facts import Publish, SessionsEnded
from appliance.core.git.mirror import Mirror
from appliance.core.git.mirror_locks import MirrorLocks
from appliance.core.models import Repo
from appliance.core.recording.attachments import Attachments
from appliance.core.recording.policy import AGENTS
from appliance.core.recording.quota import Quota
from appliance.core.recording.turns import ARCHIVE, TURNS, moves_off
from appliance.core.store.fleet_turns import FleetTurnStore
from appliance.core.store.sessions import SessionStore

log = logging.getLogger(__name__)


class EndedElsewhere:
    """Deletes what is left of the turns that `fleet_turns` names. `repo_of` finds a registered repository."""

    def __init__(
        self,
        fleet_turns: FleetTurnStore,
        sessions: SessionStore,
        quota: Quota,
        mirror_of: Callable[[str], Mirror],
        locks: MirrorLocks,
        attachments: Attachments,
        publish: Publish,
        repo_of: Callable[[str], Repo | None],
    ) -> None:
        self._fleet_turns = fleet_turns
        self._sessions = sessions
        self._quota = quota
        self._mirror_of = mirror_of
        self._locks = locks
        self._attachments = attachments
        self._publish = publish
        self._repo_of = repo_of

    async def clean(self) -> None:
        """Deletes their refs and files. What cannot be deleted now is tried again. Raises StoreError."""
        left = await asyncio.to_thread(self._fleet_turns.leftovers)
        for repo, sessions in left.items():
            try:
                async with self._locks.shared(repo):
                    for session, turns in sessions.items():
                        await self._clean(repo, session, turns)
                await self._attachments.sweep(repo)
            except GitmirrorError as error:
                log.warning("%s: sessions that other nodes ended are not deleted here yet: %s", repo, error.message)
        if left:
            self._quota.used_bytes = await asyncio.to_thread(self._sessions.recorded_bytes)
        for repo in left:
            if registered := self._repo_of(repo):
                self._publish(SessionsEnded(repo=registered))

    async def _clean(self, repo: str, session: str, turns: Mapping[int, str]) -> None:
        """Deletes the refs of turns of one session. Raises GitmirrorError, and then changes nothing.

        The session's ref moves to the last turn of this node that is left. A push that moved it meanwhile is the
        beginning of a new session.
        """
        mirror = self._mirror_of(repo)
        if mirror.exists():
            refs = {f"{TURNS}{turn}": commit for turn, commit in turns.items()}
            present = await mirror.local_refs(*refs, f"{AGENTS}{session}", f"{ARCHIVE}{session}")
            lines = [f"delete {ref} {oid}\n" for ref, oid in refs.items() if present.get(ref) == oid]
            left = await asyncio.to_thread(self._sessions.turns, repo, session)
            await mirror.update_refs(lines + moves_off(session, present, turns.values(), left))
        await asyncio.to_thread(self._fleet_turns.cleaned, repo, session, turns)
