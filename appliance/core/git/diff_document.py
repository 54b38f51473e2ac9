"""The difference between two commits: as the text that `git diff` prints, streamed, or as a bounded document."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

from appliance.core.errors import TooLarge
from appliance.core.git.command import GitError
from appliance.core.git.mirror import Mirror
from appliance.core.git.revisions import FULL_ID, commit_of, commits_of, empty_tree_like
from appliance.core.text import storable
from appliance.core.units import format_size

MOST_BYTES = 8 * 2**20
"""The default limit of a diff that becomes a document."""
BYTES_OF_A_LINE = 16
"""A document may have one line for this many bytes of its limit, because Python needs 60 bytes for the shortest."""
DIFFING = 120.0
"""Seconds that git may take for a diff, the time that its reader takes not counted."""

_PLAIN = ("diff", "--no-ext-diff", "--no-textconv", "--no-color", "--find-renames")
_STATUS = {
    "A": "added",
    "D": "deleted",
    "M": "modified",
    "R": "renamed",
    "C": "copied",
    "T": "type-changed",
}
_HUNK = re.compile(rb"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@(?: (.*))?", re.DOTALL)


async def diff_text(mirror: Mirror, old: str | None, new: str) -> AsyncGenerator[bytes, None]:
    """The patch from `old` (None: the empty tree) to `new`, as `git diff --binary` prints it; `git apply` takes it.

    Both are ids or names as in `commit_of`, and are looked up before this returns: raises UsageError, NotFound,
    GitError. The generator raises GitError when git fails, or takes longer than DIFFING seconds, and TooLarge when it
    needs more memory than a reader may have. git starts at the first piece and ends with the generator: close it
    (`aclose`) when you leave before its end.
    """
    sides = await _sides(mirror, old, new)
    return _one_behind(mirror.git.stream(*_PLAIN, "--binary", *sides, "--", cwd=mirror.path, deadline=DIFFING))


async def diff_document(mirror: Mirror, old: str | None, new: str, *, most_bytes: int = MOST_BYTES) -> dict[str, Any]:
    """The diff from `old` (None: the empty tree) to `new`: `{files, insertions, deletions, files_changed}`.

    A file: `{path, before, status, old_mode, new_mode, binary, lossy, insertions, deletions, hunks}`. `before` is its
    path before a rename, or None, as is the mode of a side that does not exist. `status` is added, deleted, modified,
    renamed, or type-changed (such as a file that became a symlink: all its lines go and come). A binary file has no
    hunks and counts no lines. `lossy` says that its path or content is not UTF-8: the path shows such bytes as `\\xNN`,
    the content as U+FFFD. A hunk: `{old_start, old_lines, new_start, new_lines, section, lines}`, with lines as in a
    patch, which begin with `+`, `-`, a space, or the backslash of `\\ No newline at end of file`.

    Raises TooLarge when git prints more than `most_bytes`, or more than one line for each BYTES_OF_A_LINE of them; and
    UsageError, NotFound, GitError.
    """
    sides = await _sides(mirror, old, new)
    stream = mirror.git.stream(*_PLAIN, "--raw", "-z", "--patch", *sides, "--", cwd=mirror.path, deadline=DIFFING)
    reader = _DiffReader(most_lines=most_bytes // BYTES_OF_A_LINE)
    left = most_bytes
    async with aclosing(stream):
        async for piece in stream:
            left -= len(piece)
            if left < 0 or not reader.feed(piece):
                raise TooLarge(
                    f"the diff is larger than {format_size(most_bytes)}"
                    if left < 0
                    else f"the diff has more than {most_bytes // BYTES_OF_A_LINE:,} lines",
                    hint="ask for it as text/x-diff, which is sent at any size",
                )
    files = reader.finish()
    return {
        "files": files,
        "insertions": sum(file["insertions"] for file in files),
        "deletions": sum(file["deletions"] for file in files),
        "files_changed": len(files),
    }


async def _one_behind(stream: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """Holds each piece back until there is another. So if git fails after a few lines, that is the first to be heard:
    of a file that is too large for it, git prints what it is called before it finds out."""
    async with aclosing(stream):
        held = b""
        async for piece in stream:
            if held:
                yield held
            held = piece
        if held:
            yield held


async def _sides(mirror: Mirror, old: str | None, new: str) -> tuple[str, str]:
    names = [new] if old is None else [old, new]
    if all(map(FULL_ID.fullmatch, names)):
        oids = await commits_of(mirror, names)
    else:
        oids = [await commit_of(mirror, name) for name in names]
    return (empty_tree_like(oids[0]) if old is None else oids[0]), oids[-1]


class _DiffReader:
    """Reads `git diff --raw -z --patch`: the list of files, which says what changed, then a patch for the hunks.

    The list is what names files, because the patch quotes their names. Both have the same order. Inside a hunk, lines
    are counted, so no content can pass for a header.
    """

    def __init__(self, *, most_lines: int) -> None:
        self._lines_left = most_lines
        self._listing: bytearray | None = bytearray()
        self._partial: list[bytes] = []
        self._files: list[dict[str, Any]] = []
        self._unseen: Iterator[dict[str, Any]] = iter(())
        self._sections_left = 0
        self._file: dict[str, Any] = {}
        self._hunk: dict[str, Any] = {}
        self._old_left = self._new_left = 0

    def feed(self, piece: bytes) -> bool:
        """Takes what has arrived. Returns False when there are too many lines, and then takes no more."""
        if self._listing is not None:
            piece = self._list(self._listing, piece)
        *lines, last = piece.split(b"\n")
        if lines:
            lines[0] = b"".join([*self._partial, lines[0]])
            self._partial.clear()
        self._partial.append(last)
        self._lines_left -= len(lines)
        if self._lines_left < 0:
            return False
        for line in lines:
            self._line(line)
        return True

    def finish(self) -> list[dict[str, Any]]:
        """The files. Raises GitError when git's output was not a list and the patches of its files."""
        missing = self._listing or self._sections_left or next(self._unseen, None)
        if missing or self._old_left or self._new_left or any(self._partial):
            raise _unreadable()
        return self._files

    def _list(self, listing: bytearray, piece: bytes) -> bytes:
        """Collects the list, which ends with an empty field. Returns what follows it."""
        start = max(0, len(listing) - 1)
        listing += piece
        end = listing.find(b"\0\0", start)
        if end < 0:
            return b""
        self._listing = None
        # One file at a time, because a document takes more memory than what git lists.
        self._unseen = _entries(bytes(listing[: end + 1]))
        return bytes(listing[end + 2 :])

    def _begin_file(self) -> None:
        if self._sections_left:
            self._sections_left -= 1
            return
        file = next(self._unseen, None)
        if file is None:
            raise _unreadable()
        self._file = file
        self._files.append(file)
        # Where the type changes, git prints the removal of the one and the addition of the other.
        self._sections_left = file["status"] == "type-changed"

    def _line(self, line: bytes) -> None:
        first = line[:1]
        if self._old_left or self._new_left:
            self._old_left -= first in (b" ", b"-")
            self._new_left -= first in (b" ", b"+")
            self._file["insertions"] += first == b"+"
            self._file["deletions"] += first == b"-"
            self._hunk["lines"].append(self._text(line))
        elif first == b"\\":
            self._hunk["lines"].append(self._text(line))
        elif match := _HUNK.match(line):
            old_start, old_lines, new_start, new_lines = (int(number or 1) for number in match.groups()[:4])
            self._old_left, self._new_left = old_lines, new_lines
            self._hunk = {
                "old_start": old_start,
                "old_lines": old_lines,
                "new_start": new_start,
                "new_lines": new_lines,
                "section": self._text(match[5] or b""),
                "lines": [],
            }
            self._file["hunks"].append(self._hunk)
        elif line.startswith(b"diff --git "):
            self._begin_file()
        elif line.startswith(b"Binary files "):
            self._file["binary"] = True

    def _text(self, line: bytes) -> str:
        try:
            return line.decode()
        except UnicodeDecodeError:
            self._file["lossy"] = True
            return line.decode("utf-8", "replace")


def _entries(listing: bytes) -> Iterator[dict[str, Any]]:
    """The files of a list, as documents without hunks."""
    fields = _fields(listing)
    for facts in fields:
        old_mode, new_mode, _, _, status = facts.decode("ascii").removeprefix(":").split()
        letter = status[0]
        before = next(fields) if letter in "RC" else None
        path = next(fields)
        yield {
            "path": _shown(path),
            "before": None if before is None else _shown(before),
            "status": _STATUS[letter],
            "old_mode": None if letter == "A" else old_mode,
            "new_mode": None if letter == "D" else new_mode,
            "binary": False,
            "lossy": not (_is_text(path) and _is_text(before or b"")),
            "insertions": 0,
            "deletions": 0,
            "hunks": [],
        }


def _fields(listing: bytes) -> Iterator[bytes]:
    start = 0
    while (end := listing.find(b"\0", start)) >= 0:
        yield listing[start:end]
        start = end + 1


def _unreadable() -> GitError:
    return GitError("git diff printed what cannot be read")


def _shown(path: bytes) -> str:
    return storable(path.decode("utf-8", "surrogateescape"))


def _is_text(path: bytes) -> bool:
    try:
        path.decode()
    except UnicodeDecodeError:
        return False
    return True
