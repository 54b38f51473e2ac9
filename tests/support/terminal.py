"""What must not reach a terminal, defined independently of the code under test."""

from __future__ import annotations

import unicodedata

BIDI = {*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C}

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e\u2066\u061c\x85\u2028"
"""Sets a title, clears the screen, sets a C1 colour, reorders text, and has two unusual line breaks."""


def unsafe(text: str, *, allowed: str = "\n") -> str:
    """Return the characters of a text that a terminal would obey, or that cannot be encoded."""
    return "".join(
        char
        for char in text
        if char not in allowed and (unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") or ord(char) in BIDI)
    )


def unsafe_bytes(data: bytes, *, allowed: str = "\n") -> str:
    """Like `unsafe`, for the output of a process. A byte that is not UTF-8 counts if it is a C1 control by itself."""
    text = data.decode("utf-8", "surrogateescape")
    return unsafe("".join(char for char in text if not 0xDCA0 <= ord(char) <= 0xDCFF), allowed=allowed)
