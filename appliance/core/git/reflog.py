"""Reads a ref's reflog, in which git notes each move while it holds the ref's lock.

git takes the lock, appends a line with the value that it found, and then renames the new value into place (observed
with strace, git 2.39). The lines are therefore in the order of the moves. If a move was logged but did not happen, the
next line starts from another value.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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

    The move happened if the next line starts from `new` or, after the last line, if the ref is at `new`. If the ref is
    not where the last line says, lines are missing: an older gitmirror wrote none, and a power cut may lose the last.
    """
    places = [place for place, move in enumerate(moves) if (move.by, move.new) == (by, new)]
    if places:
        last = places[-1]
        return moves[last + 1].old == new if last + 1 < len(moves) else current == new
    return False if moves and moves[-1].new == current else None
