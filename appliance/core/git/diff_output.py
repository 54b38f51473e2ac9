"""Prints a diff with control characters escaped; on a terminal also coloured as git does it.

git writes the content of files unchanged, even to a terminal or a pager that obeys escape sequences. We colour git's
plain diff ourselves because in a coloured one nobody can tell git's escape sequences from those in the file.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
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


def print_diff(argv: Sequence[str], environment: Mapping[str, str], *, raw: bool, patch: bool, colour: bool) -> bool:
    """Runs `git diff` and writes its output to stdout, in colour if `colour`; returns whether anything was escaped.

    `raw` writes git's exact bytes, without colours. A reader that closes the pipe early, such as `head`, is not an
    error. Raises GitmirrorError when git fails.
    """
    shown = DiffText(colour=colour, patch=patch)
    if sys.stdout.isatty() and not raw:
        environment = {**environment, "COLUMNS": str(shutil.get_terminal_size().columns)}
    sys.stdout.flush()
    output = sys.stdout.fileno()
    with tempfile.TemporaryFile() as errors:
        git = subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, stderr=errors)
        assert git.stdout is not None
        with git.stdout, _gone_reader():
            batches: Iterable[list[bytes]] = iter(lambda: git.stdout.readlines(_BATCH), [])  # type: ignore[union-attr]
            for lines in batches:
                _write_all(output, b"".join(lines) if raw else shown.render(lines))
        code = git.wait()
        errors.seek(0)
        stderr = errors.read().decode(errors="replace").strip()
    if code not in (0, -signal.SIGPIPE, -signal.SIGINT):
        raise GitmirrorError(f"git diff failed: {stderr or f'exit code {code}'}")
    return shown.escaped


@contextmanager
def _gone_reader() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        return


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
