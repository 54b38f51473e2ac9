"""Records every applied push as a turn of its session. A ref of its own keeps the commit of each turn."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from appliance.core.errors import GitmirrorError
from appliance.core.git import ref_sets
from appliance.core.git.command import GitError
from appliance.core.git.history import turn_facts
from appliance.core.git.mirror import Mirror
from appliance.core.git.stored_refs import stored_refs
from appliance.core.models import Turn
from appliance.core.recording.policy import AGENTS
from appliance.core.store.audit import UNKNOWN
from appliance.core.store.fleet_turns import FIRST_AWAY
from appliance.core.store.sessions import SessionStore, Unbooked
from appliance.core.units import rfc3339

log = logging.getLogger(__name__)

TURNS = "refs/gitmirror/turns/"
ARCHIVE = ref_sets.ARCHIVE
LATEST = 2**32
"""Unix seconds. A later commit time is ignored, because guests write any value there."""


class TurnRecorder:
    """Records turns in `store`, with facts from the mirrors that `mirror_of` finds; calls `booked` after each."""

    def __init__(
        self, store: SessionStore, mirror_of: Callable[[str], Mirror], booked: Callable[[], None] = lambda: None
    ) -> None:
        self.store = store
        self._mirror_of = mirror_of
        self._booked = booked

    async def book(self, push: Unbooked, size: int) -> None:
        """Records one applied push as a turn. If this raises GitmirrorError, `catch_up` records it later."""
        await self.record(await self.describe(push, size))

    async def describe(self, push: Unbooked, size: int) -> Turn:
        """The turn that one applied push becomes. Raises GitmirrorError."""
        mirror = self._mirror_of(push.repo)
        facts = await turn_facts(mirror, push.commit)
        at = push.at
        if push.client == UNKNOWN:
            # The turn was found in a mirror. All that is known is that it was recorded earlier.
            at = min(at, rfc3339(max(0, facts.committed_at))) if facts.committed_at < LATEST else at
        return Turn(
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
            guest=push.guest,
            bytes=size,
        )

    async def record(self, turn: Turn) -> None:
        """Records a turn. If this raises GitmirrorError, `catch_up` records it later."""
        await asyncio.to_thread(self.store.record, turn)
        self._booked()

    async def catch_up(self) -> int:
        """Records applied pushes that are not recorded yet, oldest first; returns their number. Raises StoreError."""
        recorded = 0
        for push in await asyncio.to_thread(self.store.unbooked):
            if not self._mirror_of(push.repo).exists():
                continue
            try:
                await self.book(push, 0)
                recorded += 1
            except GitmirrorError as error:
                log.error("cannot record turn %d of %s: %s", push.id, push.session, error.message)
        return recorded

    async def drop_turn_refs(self, repo: str, attempts: Mapping[int, str]) -> None:
        """Removes the turn refs of `attempts` (id: commit) that were not applied. Raises GitError.

        A ref that holds another commit belongs to another turn, and is the reason why this attempt was not applied.
        """
        mirror = self._mirror_of(repo)
        commits = {f"{TURNS}{attempt}": commit for attempt, commit in attempts.items()}
        present = await mirror.local_refs(*commits)
        await mirror.update_refs(f"delete {ref} {oid}\n" for ref, oid in present.items() if commits.get(ref) == oid)

    async def drop_leftovers(self, repo: str) -> int:
        """Removes turn refs of failed pushes and ended sessions that a kill left; returns how many. Raises GitError.

        Refs that the log does not know are left alone, because the log may be older than the mirror, such as a copy
        that was put back.
        """
        mirror = self._mirror_of(repo)
        present = await mirror.local_refs(TURNS)
        numbers = {ref: number for ref in present if (number := ref.removeprefix(TURNS)).isdigit()}
        attempts = {int(number): present[ref] for ref, number in numbers.items()}
        gone = await asyncio.to_thread(self.store.without_turn, repo, attempts)
        away = {turn: commit for turn, commit in attempts.items() if turn >= FIRST_AWAY}
        gone += await asyncio.to_thread(self.store.not_away, repo, away) if away else []
        try:
            await mirror.update_refs(f"delete {TURNS}{attempt} {attempts[attempt]}\n" for attempt in gone)
        except GitError as error:
            # A push that fails at this moment removes its own.
            log.info("%s: leftovers are not removed yet: %s", repo, error.message)
            return 0
        return len(gone)

    async def back_from_archive(self, repo: str, sessions: list[str]) -> None:
        """Removes sessions from the archive, because a push put them under `refs/agents` again. Raises GitError."""
        mirror = self._mirror_of(repo)
        present = await mirror.local_refs(*(f"{ARCHIVE}{session}" for session in sessions))
        await mirror.update_refs(f"delete {ref} {oid}\n" for ref, oid in present.items())


def moves_off(session: str, present: Mapping[str, str], ended: Iterable[str], left: Sequence[Turn]) -> list[str]:
    """Lines for `git update-ref` that move a session's ref off commits of turns that ended.

    It moves to the last turn of this node that is left. A push that moved it meanwhile is the beginning of a new
    session. `present` has the refs as they are.
    """
    gone = set(ended) - {turn.commit for turn in left}
    own = [turn.commit for turn in left if not turn.away]
    lines = []
    for ref in (f"{AGENTS}{session}", f"{ARCHIVE}{session}"):
        if (tip := present.get(ref)) in gone:
            lines.append(f"update {ref} {own[-1]} {tip}\n" if own else f"delete {ref} {tip}\n")
    return lines


def turns_here(mirror: Path, turns: Sequence[Turn]) -> set[int]:
    """The ids of those turns whose commits are in a mirror: all of this node, and those that were brought.

    Raises OSError.
    """
    own = {turn.id for turn in turns if not turn.away}
    away = {turn.id for turn in turns if turn.away}
    if not away:
        return own
    present = {ref.removeprefix(TURNS) for ref in stored_refs(mirror, TURNS)}
    return own | {number for number in away if str(number) in present}


def write_turn_file(path: Path, refs: Mapping[str, int]) -> None:
    """Writes the file in which the update hook finds the turn of each ref of a push. Raises OSError."""
    path.write_text("".join(f"{ref} {attempt}\n" for ref, attempt in refs.items()), encoding="ascii")
