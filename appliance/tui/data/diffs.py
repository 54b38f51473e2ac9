"""Turns a file's diff into lines with numbers, marks and syntax colours. Slow for large files: call it in a thread."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from appliance.tui.data.rows import DiffLine
from appliance.tui.text import Piece, plain

LONGEST_LINE = 2000
"""Characters of a line that are shown, because a minified file is a single line."""
COLOURED = 4000
"""The most lines that get syntax colours, because Pygments reads only about a megabyte a second."""
TAB = 4

_HUNK = re.compile(r"@@ -(\d+)(?:,\d+)? \+(\d+)(?:,\d+)? @@ ?(.*)")
_ABOUT = ("new file", "deleted file", "old mode", "new mode", "rename ", "similarity ", "Binary files", "copy ")

_TONES: tuple[tuple[str, str], ...] = (
    ("Token.Comment", "code-comment"),
    ("Token.Keyword", "code-keyword"),
    ("Token.Literal.String", "code-string"),
    ("Token.Literal.Number", "code-number"),
    ("Token.Name.Function", "code-name"),
    ("Token.Name.Class", "code-name"),
    ("Token.Name.Tag", "code-keyword"),
    ("Token.Name.Attribute", "code-name"),
    ("Token.Name.Decorator", "code-name"),
    ("Token.Generic.Heading", "code-keyword"),
)


def diff_lines(text: str, path: str) -> list[DiffLine]:
    """Returns the lines of one file's unified diff."""
    found: list[DiffLine] = []
    hunk: list[tuple[str, str]] = []
    start = (0, 0)
    colour = _Colourer(path, text.count("\n"))
    for line in text.split("\n"):
        if match := _HUNK.match(line):
            found += _hunk(hunk, start, colour)
            hunk, start = [], (int(match[1]), int(match[2]))
            found.append(DiffLine("@", None, None, ((f"line {match[2]}", "accent"), (f"  {_shown(match[3])}", "dim"))))
        elif start == (0, 0):
            if line.startswith(_ABOUT):
                found.append(DiffLine("!", None, None, ((_shown(line), "dim"),)))
        elif line[:1] in ("+", "-", " "):
            hunk.append((line[0], _shown(line[1:])))
        elif line.startswith("\\"):
            hunk.append(("!", "no newline at the end of the file"))
    return [*found, *_hunk(hunk, start, colour)]


def _hunk(hunk: Sequence[tuple[str, str]], start: tuple[int, int], colour: _Colourer) -> Iterator[DiffLine]:
    """Colours each side by itself, because the two sides interleaved are not valid code."""
    old = iter(colour([text for mark, text in hunk if mark in "- "]))
    new = iter(colour([text for mark, text in hunk if mark in "+ "]))
    old_number, new_number = start
    for mark, text in hunk:
        if mark == "!":
            yield DiffLine("!", None, None, ((text, "dim"),))
        elif mark == "-":
            yield DiffLine("-", old_number, None, next(old))
            old_number += 1
        elif mark == "+":
            yield DiffLine("+", None, new_number, next(new))
            new_number += 1
        else:
            next(old)
            yield DiffLine(" ", old_number, new_number, next(new))
            old_number, new_number = old_number + 1, new_number + 1


def _shown(line: str) -> str:
    return plain(line[:LONGEST_LINE].removesuffix("\r").expandtabs(TAB))


class _Colourer:
    """Splits each line of code into pieces of one tone; without a lexer a line is one piece."""

    def __init__(self, path: str, lines: int) -> None:
        self._lexer = None
        if lines <= COLOURED:
            from pygments.lexers import get_lexer_for_filename
            from pygments.util import ClassNotFound

            try:
                self._lexer = get_lexer_for_filename(path, stripnl=False, ensurenl=False)
            except ClassNotFound:
                self._lexer = None

    def __call__(self, lines: Sequence[str]) -> list[tuple[Piece, ...]]:
        if self._lexer is None or not lines:
            return [((line, ""),) for line in lines]
        found: list[list[Piece]] = [[]]
        for kind, text in self._lexer.get_tokens("\n".join(lines)):
            tone = _tone(str(kind))
            for number, part in enumerate(text.split("\n")):
                if number:
                    found.append([])
                if part:
                    found[-1].append((part, tone))
        # A lexer that adds or drops a line must not shift the colours of the others.
        if len(found) != len(lines):
            return [((line, ""),) for line in lines]
        return [tuple(pieces) for pieces in found]


def _tone(kind: str) -> str:
    return next((tone for prefix, tone in _TONES if kind.startswith(prefix)), "")
