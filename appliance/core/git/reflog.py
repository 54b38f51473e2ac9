"""Reads a ref's reflog, in which git notes each move while it holds the ref's lock.

git takes the lock, appends a line with the value that it found, and then renames the new value into place (observed
with strace, git 2.39). The lines are therefore in the order of the moves. If a move was logged but did not happen, the
next line starts from another value.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.core.git.command import Git, GitError
from appliance.core.git.mirror import Mirror
from appliance.core.models import RefCommand

# The pattern is not anchored, and does not match an object id within a committer's name: after a line that a full disk
# cut short, the next line follows without a newline.
_LINE = re.compile(
    rb"(?:([0-9a-f]{64}) ([0-9a-f]{64})|([0-9a-f]{40}) ([0-9a-f]{40})) "
    rb"(?:(?![0-9a-f]{40} )[^<>\n])*<([^<>\n]*)> \d+ [-+]\d{4}\b"
)


@dataclass(frozen=True)
class Move:
    """One line. `by` is the committer's mail address, which is the id of a push. Zeros stand for no value."""

    old: str
    new: str
    by: str


def read_moves(mirror: Path, ref: str) -> tuple[Move, ...]:
    """Returns the moves of `ref`, oldest first, and none if it has no reflog. Raises OSError."""
    try:
        log = Path(mirror, "logs", ref).read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return ()
    found = ([os.fsdecode(part) for part in match.groups() if part is not None] for match in _LINE.finditer(log))
    return tuple(Move(*parts) for parts in found)


def was_moved(moves: Sequence[Move], by: str, new: str, current: str | None) -> bool | None:
    """Returns whether `by` moved the ref, which is at `current` now, to `new`; None if the log cannot tell.

    The move happened if the next line starts from `new` or, after the last line, if the ref is at `new`; and it was
    not put back. If the ref is not where the last line says, lines are missing: an older gitmirror wrote none, and a
    power cut may lose the last.
    """
    places = [place for place, move in enumerate(moves) if (move.by, move.new) == (by, new)]
    if places:
        last = places[-1]
        back = [place for place, move in enumerate(moves) if place > last and move.by == _UNDONE + by]
        return _happened(moves, last, current) and not (back and _happened(moves, back[-1], current))
    return False if moves and moves[-1].new == current else None


def _happened(moves: Sequence[Move], place: int, current: str | None) -> bool:
    return (moves[place + 1].old if place + 1 < len(moves) else current) == moves[place].new


_UNDONE = "undone."
"""Before the id of a push, in the lines of a move that puts its ref back."""


def _mover(moves: Sequence[Move], current: str | None) -> str | None:
    """Who moved the ref, which is at `current`, there; what was put back does not count. None if no line tells."""
    standing: list[str] = []
    for place, move in enumerate(moves):
        if not _happened(moves, place, current):
            continue
        if standing and move.by == _UNDONE + standing[-1]:
            standing.pop()
        else:
            standing.append(move.by)
    return standing[-1] if standing else None


async def put_back(mirror: Mirror, command: RefCommand, push: str) -> None:
    """Undoes the move of a push, so that `was_moved` sees that. Raises GitError if the ref was moved since.

    Another push may have moved it to the same commit. The reflog of a ref that the push created is removed with it.
    """
    moves = await asyncio.to_thread(read_moves, mirror.path, command.ref)
    if _mover(moves, command.new) not in (push, None):
        raise GitError(f"{command.ref} was moved since by another push")
    environment = {**mirror.git.environment, "GIT_COMMITTER_NAME": "gitmirror", "GIT_COMMITTER_EMAIL": _UNDONE + push}
    undo = Mirror(mirror.path, Git(mirror.git.children, environment))
    if command.old.strip("0"):
        await undo.update_refs([f"update {command.ref} {command.old} {command.new}\n"])
    else:
        await undo.update_refs([f"delete {command.ref} {command.new}\n"])
