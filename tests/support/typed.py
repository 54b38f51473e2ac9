"""A program on a terminal that somebody types into."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

SECONDS = 60.0
"""How long to wait for what is expected: for hangs alone."""
QUESTIONS = {b"\x1b[c": b"\x1b[?62c", b"\x1b[0c": b"\x1b[?62c", b"\x1b[6n": b"\x1b[1;1R"}
"""What a shell asks its terminal, with the answer; fish waits for them."""


class TypedInto:
    """Runs `argv` on a new terminal until the block ends; `shown` is all that it wrote there."""

    def __init__(self, argv: Sequence[str], cwd: Path, env: dict[str, str]) -> None:
        self.shown = ""
        self.code: int | None = None
        self._pid, self._terminal = pty.fork()
        if self._pid == 0:
            os.chdir(cwd)
            os.execvpe(argv[0], list(argv), {**env, "TERM": "xterm"})

    def press(self, keys: str) -> None:
        """Types the keys, of which Ctrl-C is one."""
        os.write(self._terminal, keys.encode())

    def wait_for(self, pattern: str) -> str:
        """Waits until what was shown since the last call has the pattern, and returns it; fails with all of it."""
        until, seen = time.monotonic() + SECONDS, b""
        while time.monotonic() < until:
            plain = re.sub(
                r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07|\x1b[=>(][B]?", "", seen.decode(errors="replace")
            )
            if re.search(pattern, plain):
                return plain
            if select.select([self._terminal], [], [], 0.5)[0]:
                try:
                    more = os.read(self._terminal, 65536)
                except OSError:
                    # Linux tells the end of a terminal by EIO.
                    break
                seen += more
                self.shown += more.decode(errors="replace")
                for question, reply in QUESTIONS.items():
                    if question in more:
                        os.write(self._terminal, reply)
        raise AssertionError(f"{pattern!r} was not shown, but {seen.decode(errors='replace')!r}")

    def end(self) -> int:
        """Waits for the program's own end, and returns its code."""
        try:
            while more := os.read(self._terminal, 65536):
                self.shown += more.decode(errors="replace")
        except OSError:
            pass
        self.code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        return self.code

    def __enter__(self) -> TypedInto:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.code is None:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        os.close(self._terminal)
