"""How far a first clone is, from git's own progress lines."""

from __future__ import annotations

import os
import sys
import threading
import time
from types import TracebackType

from appliance.core.events.fetch_progress import FetchProgress
from appliance.core.units import format_duration, format_size

EVERY = 5.0
"""Seconds between two lines where stderr is no terminal; a clone that is over sooner prints none."""
REDRAWN = 1.0
"""Seconds after which the line on a terminal is drawn again, so that one sees that it still runs."""
WIDTH = 24


class CloneProgress:
    """Shows the progress on stderr from `with` on until its end.

    On a terminal, one line is redrawn in place and erased at the end; elsewhere a line is printed every EVERY seconds.
    """

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._progress = FetchProgress()
        self._since = time.monotonic()
        self._over = threading.Event()
        self._drawing = threading.Lock()
        self._drawn = False
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def take(self, line: str) -> None:
        """Takes one line of git's progress, such as `Receiving objects:  42% (420/1000), 1.2 MiB | 3 MiB/s`."""
        progress = self._progress.after(line)
        if progress is not self._progress:
            self._progress = progress
            if self._terminal:
                self._draw()

    def __enter__(self) -> CloneProgress:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        with self._drawing:
            if self._drawn:
                _write("\r\x1b[K")

    def _run(self) -> None:
        """Shows the progress while no line comes: git says nothing while it waits for an upstream."""
        while not self._over.wait(REDRAWN if self._terminal else EVERY):
            if self._terminal:
                self._draw()
            else:
                _write(f"{self._progress.words()}, {self._elapsed()} so far\n")

    def _draw(self) -> None:
        with self._drawing:
            if not self._over.is_set():
                _write(f"\r\x1b[K{self._line()[: _columns() - 1]}")
                self._drawn = True

    def _line(self) -> str:
        """The line on a terminal: `receiving objects   [####----]  42%  1.2 GiB  3.0 MiB/s  1m12s`."""
        now = self._progress
        parts = [now.phase if now.percent is None else f"{now.phase:<19}"]
        if now.percent is not None:
            filled = WIDTH * now.percent // 100
            parts.append(f"[{'#' * filled + '-' * (WIDTH - filled)}] {now.percent:>3}%")
        elif now.objects is not None:
            parts.append(f"{now.objects:,}")
        parts += [format_size(now.bytes)] if now.bytes is not None else []
        parts += [f"{format_size(round(now.speed))}/s"] if now.speed is not None else []
        return "  ".join([*parts, self._elapsed()])

    def _elapsed(self) -> str:
        seconds = int(time.monotonic() - self._since)
        return format_duration(seconds) if seconds else "0s"


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def _write(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()
