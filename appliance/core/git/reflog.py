"""The reflog of a ref: who moved it from where to where, as git notes it while it holds the ref's lock.

git takes the lock, appends the line with the value that it found, and then renames the new value into place (seen
with strace, git 2.39). So the lines are in the order of the moves, and one whose move did not happen is followed
by one that found another value.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# Not anchored, and a committer's name holds no object id: a line that a full disk cut short has the next on its end.
_LINE = re.compile(
    rb"(?:([0-9a-f]{64}) ([0-9a-f]{64})|([0-9a-f]{40}) ([0-9a-f]{40})) "
    rb"(?:(?![0-9a-f]{40} )[^<>\n])*<([^<>\n]*)> \d+ [-+]\d{4}\b"
)


@dataclass(frozen=True)
class Move:
    """One line: `by` is the committer's mail address, for a push its id; no value is zeros."""

    old: str
    new: str
    by: str


def read_moves(mirror: Path, ref: str) -> tuple[Move, ...]:
    """The log of `ref`, oldest first; empty when there is none. Raises OSError."""
    try:
        log = Path(mirror, "logs", ref).read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return ()
    found = ([os.fsdecode(part) for part in match.groups() if part is not None] for match in _LINE.finditer(log))
    return tuple(Move(*parts) for parts in found)


def was_moved(moves: Sequence[Move], by: str, new: str, current: str | None) -> bool | None:
    """Whether `by` moved the ref to `new`, where its value is `current`. None when the log cannot tell.

    Whoever came next found `new` or did not; where nobody came next the ref itself is at it or is not. A log whose last
    line is not where the ref is has lines missing (an older gitmirror kept none, a power cut may take the last).
    """
    places = [place for place, move in enumerate(moves) if (move.by, move.new) == (by, new)]
    if places:
        last = places[-1]
        return moves[last + 1].old == new if last + 1 < len(moves) else current == new
    return False if moves and moves[-1].new == current else None
