"""Reads git's error output: passes its lines on, and keeps those that tell why it failed."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence


class ErrorLines:
    """Passes every line of stderr on, and collects its last 50 lines without those about progress."""

    _PROGRESS = re.compile(r"^(remote: )?[A-Z][a-z]+ (objects|deltas|files).*\d+%|^remote: (Enumerating|Total) ")

    def __init__(self, on_line: Callable[[str], None] | None, secrets: Sequence[str] = ()) -> None:
        self._on_line = on_line
        self._secrets = secrets
        self._rest = b""
        self._last: list[str] = []

    def feed(self, data: bytes) -> None:
        """Takes what has arrived, which may end in the middle of a line."""
        *lines, self._rest = re.split(rb"[\r\n]+", (self._rest + data)[-65536:])
        for line in lines:
            self._take(line)

    def _take(self, raw: bytes) -> None:
        line = raw.decode(errors="replace").rstrip()
        for secret in self._secrets:
            line = line.replace(secret, "…")
        if not line:
            return
        if self._on_line is not None:
            self._on_line(line)
        if not self._PROGRESS.match(line):
            self._last = [*self._last[-49:], line]

    def text(self) -> str:
        """The lines that were kept. Call it once, at the end."""
        self._take(self._rest)
        self._rest = b""
        return "\n".join(self._last)


def last_errors(stderr: str) -> str:
    """The last three lines that git marked as fatal, error or remote; without any, the last three lines."""
    lines = stderr.splitlines()
    marked = [line for line in lines if line.startswith(("fatal: ", "error: ", "remote: "))]
    return "; ".join((marked or lines)[-3:])
