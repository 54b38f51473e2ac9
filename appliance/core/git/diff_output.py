"""Prints a diff with control characters escaped; on a terminal also coloured and paged as git does it.

git writes the content of files unchanged, even to a terminal or a pager that obeys escape sequences. We colour git's
plain diff ourselves because in a coloured one nobody can tell git's escape sequences from those in the file.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from appliance.core.errors import GitmirrorError
from appliance.core.text import escape_patch

_BOLD, _RED, _GREEN, _CYAN, _PLAIN = b"\x1b[1m", b"\x1b[31m", b"\x1b[32m", b"\x1b[36m", b"\x1b[m"
"""The colours that git uses in a diff."""

_MARK = b"! gitmirror: control characters are shown as escapes from here on; --raw gives the exact patch\n"
"""git apply refuses a patch with this line, which is intended: applying the escapes would write them into files."""

_HUNK = re.compile(rb"(@@ -\d+(?:,(\d+))? \+\d+(?:,(\d+))? @@)")
_BARS = re.compile(rb"( \| +\d+ )(\+*)(-*)$")
_BATCH = 1 << 16
_TERMINAL = ("TERM", "COLORTERM", "LESS", "LV", "PAGER", "GIT_PAGER", "LINES", "NO_COLOR", "LANG", "LC_CTYPE")


class DiffText:
    """Makes git's plain output safe to show. `patch` is False if the output is a list of files, not a patch."""

    def __init__(self, *, colour: bool, patch: bool) -> None:
        self._colour = colour
        self._patch = patch
        self._left = [0, 0]
        self.escaped = False

    def render(self, lines: Sequence[bytes]) -> bytes:
        """The bytes to write for these whole lines."""
        whole = b"".join(lines)
        safe = escape_patch(whole)
        if safe == whole and not self._colour:
            return whole
        return b"".join(map(self._line, lines))

    def _line(self, line: bytes) -> bytes:
        safe, before = escape_patch(line), b""
        if safe != line and not self.escaped:
            self.escaped = True
            before = _MARK if self._patch else b""
        return before + (self._painted(safe) if self._colour else safe)

    def _painted(self, line: bytes) -> bytes:
        text = line.rstrip(b"\r\n")
        end = line[len(text) :]
        if not self._patch:
            return _BARS.sub(rb"\1" + _GREEN + rb"\2" + _PLAIN + _RED + rb"\3" + _PLAIN, text) + end
        if any(self._left) and text[:1] != b"\\":
            # Inside a hunk every line is content, even if it looks like a header: `--- x` is a removed `-- x`.
            self._left[0] -= text[:1] != b"+"
            self._left[1] -= text[:1] != b"-"
            tone = {b"+": _GREEN, b"-": _RED}.get(text[:1])
            return (tone + text + _PLAIN if tone else text) + end
        if match := _HUNK.match(text):
            self._left = [1 if count is None else int(count) for count in match.groups()[1:]]
            return _CYAN + match[1] + _PLAIN + text[match.end() :] + end
        if not text or text.startswith((b"\\", b"Binary files ")):
            return text + end
        return _BOLD + text + _PLAIN + end


def print_diff(argv: Sequence[str], environment: Mapping[str, str], *, raw: bool, patch: bool) -> bool:
    """Runs `git diff` and writes its output to stdout; returns whether anything was escaped.

    On a terminal the output is coloured and goes through git's pager. `raw` writes git's exact bytes, with neither. A
    reader that closes the pipe early, such as `head`, is not an error. Raises GitmirrorError when git fails.
    """
    terminal = sys.stdout.isatty() and not raw
    shown = DiffText(colour=terminal and _wants_colour(), patch=patch)
    environment = {**environment, "COLUMNS": str(shutil.get_terminal_size().columns)} if terminal else environment
    with tempfile.TemporaryFile() as errors:
        git = subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, stderr=errors)
        assert git.stdout is not None
        with git.stdout, _reader(environment if terminal else None) as write:
            batches: Iterable[list[bytes]] = iter(lambda: git.stdout.readlines(_BATCH), [])  # type: ignore[union-attr]
            for lines in batches:
                write(b"".join(lines) if raw else shown.render(lines))
        code = git.wait()
        errors.seek(0)
        stderr = errors.read().decode(errors="replace").strip()
    if code not in (0, -signal.SIGPIPE, -signal.SIGINT):
        raise GitmirrorError(f"git diff failed: {stderr or f'exit code {code}'}")
    return shown.escaped


def _wants_colour() -> bool:
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"


@contextmanager
def _reader(environment: Mapping[str, str] | None) -> Iterator[Callable[[bytes], None]]:
    """A function that writes to git's pager, or to stdout if `environment` is None or git would use no pager.

    The block ends early, without an error, when the reader closes the pipe.
    """
    command = _pager(environment) if environment is not None else ""
    sys.stdout.flush()
    if environment is None or not command:
        with _gone_reader():
            yield lambda data: _write_all(sys.stdout.fileno(), data)
        return
    terminal = {key: os.environ[key] for key in _TERMINAL if key in os.environ}
    # The same defaults as git's: colours pass through, and output that fits on one screen is not paged.
    pager = subprocess.Popen(
        command, shell=True, stdin=subprocess.PIPE, env={"LESS": "FRX", "LV": "-c", **environment, **terminal}
    )
    assert pager.stdin is not None
    # Ctrl-C is for the pager, which owns the terminal until it ends.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with _gone_reader(), pager.stdin:
            yield lambda data: _write_all(pager.stdin.fileno(), data)  # type: ignore[union-attr]
    finally:
        pager.wait()
        signal.signal(signal.SIGINT, before)


@contextmanager
def _gone_reader() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        return


def _pager(environment: Mapping[str, str]) -> str:
    """The pager command that git would run; empty if git would use none, or if its program is not installed."""
    chosen = {key: os.environ[key] for key in ("GIT_PAGER", "PAGER") if key in os.environ}
    answer = subprocess.run(
        ["git", "var", "GIT_PAGER"], env={**environment, **chosen}, capture_output=True, check=False
    )
    command = os.fsdecode(answer.stdout).strip()
    try:
        program = next((word for word in shlex.split(command) if "=" not in word), "")
    except ValueError:
        program = ""
    return command if command != "cat" and shutil.which(program) else ""


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
