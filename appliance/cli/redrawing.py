"""Output that is shown again and again: in place on a terminal, elsewhere one after another."""

from __future__ import annotations

import io
import shutil
import sys
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from types import TracebackType
from typing import TextIO

RESIZED = "\x1b[H\x1b[2J"


class Redrawn:
    """Takes what a block prints, on stdout and stderr, and draws it over what the last block printed.

    On a terminal, what has no room is cut, because a terminal that scrolls or wraps cannot be redrawn. Elsewhere, an
    empty line stands before each but the first.
    """

    def __init__(self) -> None:
        self._output: TextIO = sys.stdout
        self._is_terminal = self._output.isatty()
        self._size = shutil.get_terminal_size()
        self._lines: int | None = None
        self._taken = io.StringIO()
        self._redirected = ExitStack()

    def __enter__(self) -> Redrawn:
        self._taken = io.StringIO()
        self._redirected.enter_context(redirect_stdout(self._taken))
        if sys.stderr.isatty():
            self._redirected.enter_context(redirect_stderr(self._taken))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._redirected.close()
        if kind is None:
            self._draw(self._taken.getvalue().splitlines())

    def _draw(self, lines: list[str]) -> None:
        if self._is_terminal:
            before, self._size = self._size, shutil.get_terminal_size()
            lines = [line[: self._size.columns] for line in lines[: self._size.lines - 1]]
            # What was drawn before a change of the size may have been wrapped, so nobody knows where it begins.
            up = RESIZED if before != self._size else f"\x1b[{self._lines}A" if self._lines else ""
            self._output.write(up + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J")
        else:
            between = "" if self._lines is None else "\n"
            self._output.write(between + "".join(f"{line}\n" for line in lines))
        self._output.flush()
        self._lines = len(lines)
