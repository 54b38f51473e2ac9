"""The refs of turns that were brought: each turn's own, and its session's, if that turn is the last.

Pushes write the same refs. They win: a session's ref is moved only from a turn that is booked, and only if it still has
the value that was looked at.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from appliance.core.errors import NotFound
from appliance.core.git.command import GitError
from appliance.core.git.mirror import Mirror
from appliance.core.git.ref_sets import AGENTS, ARCHIVE
from appliance.core.git.stored_refs import stored_refs
from appliance.core.recording.turns import TURNS
from appliance.core.store.away_turns import AwayTurn, AwayTurnStore
from appliance.core.store.sessions import SessionStore

TRIES = 5
"""Times that a session's ref is looked at again because a push moved it."""


def is_here(mirror: Path, turn_id: int) -> bool:
    """Whether the mirror has a turn, which is so once it has the turn's ref. Raises OSError."""
    ref = f"{TURNS}{turn_id}"
    with contextlib.suppress(OSError):
        if (mirror / ref).stat().st_size:
            return True
    return ref in stored_refs(mirror, TURNS)


async def set_turn_ref(mirror: Mirror, away: AwayTurnStore, turn: AwayTurn) -> None:
    """Sets the ref that keeps a turn's commit. Raises NotFound if its session was ended meanwhile, GitmirrorError."""
    ref = f"{TURNS}{turn.id}"
    await mirror.update_refs([f"update {ref} {turn.commit}\n"])
    # Looked at after the ref is there: whoever ends a session removes the rows first, or sees the ref.
    if await asyncio.to_thread(away.get, turn.id) is None:
        await mirror.update_refs([f"delete {ref} {turn.commit}\n"])
        raise NotFound(f"the session {turn.session} was ended meanwhile")


async def point_session(mirror: Mirror, sessions: SessionStore, away: AwayTurnStore, turn: AwayTurn) -> None:
    """Points the session's ref to a turn, if that is the last one, and nobody pushes. Raises GitmirrorError."""
    agents, archive = f"{AGENTS}{turn.session}", f"{ARCHIVE}{turn.session}"
    for _ in range(TRIES):
        present = await mirror.local_refs(agents, archive)
        current = present.get(agents)
        if current == turn.commit or not await asyncio.to_thread(_may_move, sessions, away, turn, current):
            return
        # All zeros say that the ref must not be there.
        lines = [f"update {agents} {turn.commit} {current or '0' * len(turn.commit)}\n"]
        if archive in present:
            lines.append(f"delete {archive} {present[archive]}\n")
        with contextlib.suppress(GitError):
            await mirror.update_refs(lines)
            if archive in present:
                await asyncio.to_thread(sessions.set_archived, turn.repo, [turn.session], False)
            return


def _may_move(sessions: SessionStore, away: AwayTurnStore, turn: AwayTurn, current: str | None) -> bool:
    """Whether the session's ref may move to `turn` from `current`, which must be a turn that is booked."""
    if turn.session in sessions.being_pushed(turn.repo):
        return False
    newest = away.newest(turn.repo, turn.session)
    if newest is None or newest.id != turn.id:
        return False
    return current is None or any(each.commit == current for each in sessions.turns(turn.repo, turn.session))
