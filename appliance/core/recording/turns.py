"""The book of sessions: every applied recording becomes a turn, whose commit a ref of its own keeps."""

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
"""A time of a commit past which it says nothing; a guest writes what it likes there."""


class TurnRecorder:
    """Books turns in `store`, with what `mirror_of` finds in the repositories."""

    def __init__(self, store: SessionStore, mirror_of: Callable[[str], Mirror]) -> None:
        self.store = store
        self._mirror_of = mirror_of

    async def book(self, push: Unbooked, size: int) -> None:
        """One applied push as a turn. Raises GitmirrorError; it is then booked at the next start."""
        mirror = self._mirror_of(push.repo)
        facts = await turn_facts(mirror, push.commit)
        at = push.at
        if push.client == UNKNOWN:
            # Found, not seen: all that is known is that it was recorded before.
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
        """Books what was applied and not booked, oldest first; returns how many. Raises StoreError."""
        booked = 0
        for push in await asyncio.to_thread(self.store.unbooked):
            if not self._mirror_of(push.repo).exists():
                continue
            try:
                await self.book(push, 0)
                booked += 1
            except GitmirrorError as error:
                log.error("turn %d of %s cannot be booked: %s", push.id, push.session, error.message)
        return booked

    async def drop_turn_refs(self, repo: str, attempts: Mapping[int, str]) -> None:
        """Removes the turn refs of attempts that were not applied, by id with their commits. Raises GitError.

        A ref that keeps another commit is another turn's, and the reason why this one was not applied.
        """
        mirror = self._mirror_of(repo)
        commits = {f"{TURNS}{attempt}": commit for attempt, commit in attempts.items()}
        present = await mirror.local_refs(*commits)
        await mirror.update_refs(f"delete {ref} {oid}\n" for ref, oid in present.items() if commits.get(ref) == oid)

    async def drop_leftovers(self, repo: str) -> int:
        """Removes turn refs that a kill left: of failed pushes, of ended sessions. Returns how many. Raises GitError.

        What the log does not know is left alone: the log may be the older of the two, put back from a copy.
        """
        mirror = self._mirror_of(repo)
        present = await mirror.local_refs(TURNS)
        numbers = {ref: number for ref in present if (number := ref.removeprefix(TURNS)).isdigit()}
        attempts = {int(number): present[ref] for ref, number in numbers.items()}
        gone = await asyncio.to_thread(self.store.without_turn, repo, attempts)
        await mirror.update_refs(f"delete {TURNS}{each} {attempts[each]}\n" for each in gone)
        return len(gone)

    async def back_from_archive(self, repo: str, sessions: list[str]) -> None:
        """A session that was written is under `refs/agents` again: its place in the archive goes. Raises GitError."""
        mirror = self._mirror_of(repo)
        present = await mirror.local_refs(*(f"{ARCHIVE}{session}" for session in sessions))
        await mirror.update_refs(f"delete {ref} {oid}\n" for ref, oid in present.items())


def write_turn_file(path: Path, refs: Mapping[str, int]) -> None:
    """Tells the update hook which turn each ref of a push is. Raises OSError."""
    path.write_text("".join(f"{ref} {attempt}\n" for ref, attempt in refs.items()), encoding="ascii")
