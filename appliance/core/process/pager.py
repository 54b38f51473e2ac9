"""A pager: a program that shows, a screen at a time, what this process would write to its terminal."""

from __future__ import annotations

import io
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TextIO

DEFAULT = "less"
VARIABLES = ("GITMIRROR_PAGER", "PAGER")
"""Where a command is looked for; the first that is set decides, and an empty one means no pager."""
ANOTHER_USER = ("SUDO_UID", "DOAS_USER", "PKEXEC_UID")
"""What shows that somebody was let run this command as another user, and perhaps no other command."""


def pager_command(environ: Mapping[str, str]) -> str:
    """The pager that the user chose, else `less`; empty for none, or if its program is not installed."""
    command = next((environ[name] for name in VARIABLES if name in environ), DEFAULT)
    try:
        program = next((word for word in shlex.split(command) if "=" not in word), "")
    except ValueError:
        return ""
    return command if command != "cat" and shutil.which(program) else ""


class _PagerInput(io.RawIOBase):
    """The way into a pager, which starts with the first byte, so that a command that only fails needs none.

    It says that it is a terminal, because what is written here ends at one.
    """

    def __init__(self, command: str) -> None:
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    def writable(self) -> bool:
        """It is for writing alone."""
        return True

    def isatty(self) -> bool:
        """Colours and the width of the terminal are as without a pager."""
        return True

    def fileno(self) -> int:
        """The pipe, for what is written past Python."""
        assert self._started().stdin is not None
        return self._started().stdin.fileno()  # type: ignore[union-attr]

    def write(self, data: io.ReadableBuffer) -> int:  # type: ignore[name-defined]
        """Raises BrokenPipeError once the reader has left the pager."""
        return os.write(self.fileno(), data)

    @property
    def has_started(self) -> bool:
        """Whether the pager has the terminal."""
        return self._process is not None

    def end(self) -> None:
        """Says that this was all, and waits until the reader has left. Ctrl-C is for the pager until then."""
        if self._process is None:
            return
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            with suppress(BrokenPipeError):
                self._process.communicate()
        finally:
            signal.signal(signal.SIGINT, before)

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            # The defaults of git: what fits on one screen is not paged (F), colours pass through (R), and the text
            # stays on the screen (X).
            environment = {"LESS": "FRX", "LV": "-c", **os.environ}
            if any(name in os.environ for name in ANOTHER_USER):
                # Otherwise `!sh` in less would be a shell of that user.
                environment["LESSSECURE"] = "1"
            self._process = subprocess.Popen(self._command, shell=True, stdin=subprocess.PIPE, env=environment)
        return self._process


class _Messages(io.StringIO):
    """Messages for a terminal, held back while a pager has it, because they would be lost in what it shows."""

    def __init__(self, way: _PagerInput, terminal: TextIO) -> None:
        super().__init__()
        self._way = way
        self._terminal = terminal

    def write(self, text: str, /) -> int:
        return super().write(text) if self._way.has_started else self._terminal.write(text)

    def isatty(self) -> bool:
        return True


@contextmanager
def paged(command: str) -> Iterator[None]:
    """Sends what the block writes to stdout through the pager `command`.

    What it writes to stderr meanwhile, if that is a terminal, appears once the reader has left the pager. The block
    ends early, without an error, when the reader leaves.
    """
    outputs, messages = (sys.stdout, sys.stderr), io.StringIO()
    way = _PagerInput(command)
    text = io.TextIOWrapper(io.BufferedWriter(way), encoding=sys.stdout.encoding, errors=sys.stdout.errors)
    sys.stdout.flush()
    sys.stdout = text
    if sys.stderr.isatty():
        sys.stderr = messages = _Messages(way, sys.stderr)
    try:
        yield
    except BrokenPipeError:
        return
    finally:
        sys.stdout, sys.stderr = outputs
        with suppress(BrokenPipeError):
            text.close()
        way.end()
        sys.stderr.write(messages.getvalue())
        sys.stderr.flush()
