"""Records every applied push as a turn of its session; a ref of its own keeps the turn's commit."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from appliance.core.errors import GitmirrorError
from appliance.core.git.history import turn_facts
from appliance.core.git.mirror import Mirror
from appliance.core.models import Turn
from appliance.core.store.audit import UNKNOWN
from appliance.core.store.sessions import SessionStore, Unbooked
from appliance.core.units import rfc3339

log = logging.getLogger(__name__)

TURNS = "refs/gitmirror/turns/"
ARCHIVE = "refs/gitmirror/archive/"
LATEST = 2**32
"""Commit times from this value on are ignored, because a guest can write any time."""


class TurnRecorder:
    """Records turns in `store`, with facts read from the repositories of `mirror_of`."""

    def __init__(self, store: SessionStore, mirror_of: Callable[[str], Mirror]) -> None:
        self.store = store
        self._mirror_of = mirror_of

    async def book(self, push: Unbooked, size: int) -> None:
        """Records one applied push as a turn. Raises GitmirrorError; `catch_up` then records it later."""
        mirror = self._mirror_of(push.repo)
        facts = await turn_facts(mirror, push.commit)
        at = push.at
        if push.client == UNKNOWN:
            # This turn was found in a mirror, so all that is known is that it was recorded before now.
            at = min(at, rfc3339(max(0, facts.committed_at))) if facts.committed_at < LATEST else at
        turn = Turn(
            id=push.id,
            repo=push.repo,
            session=push.session,
            commit=push.commit,
            base=facts.base,
            at=at,
            subject=facts.subject,
            commits=facts.commits,
            files_changed=facts.changed.files_changed,
            insertions=facts.changed.insertions,
            deletions=facts.changed.deletions,
            client=push.client,
            bytes=size,
        )
        await asyncio.to_thread(self.store.record, turn)

    async def catch_up(self) -> int:
        """Records applied pushes that have no turn yet, oldest first; returns how many. Raises StoreError."""
        booked = 0
        for push in await asyncio.to_thread(self.store.unbooked):
            if not self._mirror_of(push.repo).exists():
                continue
            try:
                await self.book(push, 0)
                booked += 1
            except GitmirrorError as error:
                log.error("turn %d of session %s cannot be recorded: %s", push.id, push.session, error.message)
        return booked

    async def drop_turn_refs(self, repo: str, attempts: Mapping[int, str]) -> None:
        """Deletes the turn refs of attempts (id to commit) that were not applied. Raises GitError.

        A ref with another commit belongs to another turn, and is the reason why this one was not applied; it stays.
        """
        mirror = self._mirror_of(repo)
        commits = {f"{TURNS}{attempt}": commit for attempt, commit in attempts.items()}
        present = await mirror.local_refs(*commits)
        await mirror.update_refs(f"delete {ref} {oid}\n" for ref, oid in present.items() if commits.get(ref) == oid)

    async def drop_leftovers(self, repo: str) -> int:
        """Deletes turn refs of failed pushes and ended sessions that a kill left; returns how many. Raises GitError.

        Refs that the log does not know stay, because the log may be older than they are, restored from a backup.
        """
        mirror = self._mirror_of(repo)
        present = await mirror.local_refs(TURNS)
        numbers = {ref: number for ref in present if (number := ref.removeprefix(TURNS)).isdigit()}
        attempts = {int(number): present[ref] for ref, number in numbers.items()}
        gone = await asyncio.to_thread(self.store.without_turn, repo, attempts)
        await mirror.update_refs(f"delete {TURNS}{attempt} {attempts[attempt]}\n" for attempt in gone)
        return len(gone)

    async def back_from_archive(self, repo: str, sessions: list[str]) -> None:
        """Deletes the archive refs of sessions that a new push has put back under `refs/agents`. Raises GitError."""
        mirror = self._mirror_of(repo)
        present = await mirror.local_refs(*(f"{ARCHIVE}{session}" for session in sessions))
        await mirror.update_refs(f"delete {ref} {oid}\n" for ref, oid in present.items())


def write_turn_file(path: Path, refs: Mapping[str, int]) -> None:
    """Writes the file that tells the update hook the turn number of each ref in a push. Raises OSError."""
    path.write_text("".join(f"{ref} {attempt}\n" for ref, attempt in refs.items()), encoding="ascii")
