"""The progress bar of a first clone, drawn from git's own progress lines."""

from __future__ import annotations

import re
import sys
from types import TracebackType

_PERCENT = re.compile(r"^(?:remote: )?([A-Z][a-z]{1,19} (?:objects|deltas|files)): +([0-9]{1,3})%")
"""An upstream may send any text as progress, so only short titles and percentages that fit on the line are drawn."""
WIDTH = 30


class CloneProgress:
    """Draws one line on stderr, redrawn in place and erased at the end. Draws nothing when stderr is no terminal."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._drawn = False

    def take(self, line: str) -> None:
        """Takes one line of git's progress, such as `Receiving objects:  42% (420/1000), 1.2 MiB | 3 MiB/s`."""
        match = _PERCENT.match(line)
        if match is None or not self._terminal:
            return
        filled = WIDTH * min(100, int(match[2])) // 100
        bar = "#" * filled + "-" * (WIDTH - filled)
        sys.stderr.write(f"\r\x1b[K{match[1]:<20} [{bar}] {match[2]:>3}%")
        sys.stderr.flush()
        self._drawn = True

    def __enter__(self) -> CloneProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._drawn:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
