"""Text that a guest, an upstream or a file brought, made fit to be shown. Pure, and the one home of the rule.

A terminal takes C0 and C1 control characters as commands: they move the cursor, colour, retitle, even type. A line
break begins a line that looks like one of ours, and bidirectional controls put words in another order (CVE-2021-42574).
All of them are shown as escapes, `\\x1b` or `\\u202e`. What is printed, logged, drawn or answered passes `escape`. JSON
does not need it, because `json.dumps` escapes everything that is not printable ASCII.
"""

from __future__ import annotations

import re

_CONTROLS = "\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
"""C0 but for tab and line ends, DEL and C1, bidirectional controls, line and paragraph separators."""

_UNSHOWABLE = re.compile(f"[{_CONTROLS}\t\n\r\ud800-\udfff]")
# What is no UTF-8 and no C1 byte stays: a patch of a Latin-1 file has to apply.
_UNSHOWABLE_IN_PATCH = re.compile(f"[{_CONTROLS}\udc80-\udc9f]|\r(?!\n)")

_SHORT = {"\t": "\\t", "\n": "\\n", "\r": "\\r"}


def escape(text: str, *, keep: str = "") -> str:
    """The text with visible escapes for what must not reach a terminal, except for the characters in `keep`.

    Bytes that were no UTF-8 (surrogates, as `surrogateescape` leaves them) become `\\xNN`: the result can be encoded.
    """
    if text.isprintable():
        return text
    return _UNSHOWABLE.sub(lambda match: match[0] if match[0] in keep else _visible(match[0]), text)


def escape_patch(data: bytes) -> bytes:
    """Lines of a diff with visible escapes in them; a line without control characters comes out byte for byte."""
    text = data.decode("utf-8", "surrogateescape")
    return _UNSHOWABLE_IN_PATCH.sub(lambda match: _visible(match[0]), text).encode("utf-8", "surrogateescape")


def _visible(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:
        code -= 0xDC00
    return _SHORT.get(char) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")


def storable(name: str) -> str:
    """A ref's name as text that can be stored: git allows any bytes, and those that are not UTF-8 become `\\xNN`."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def escape_ascii(text: str, limit: int = 300) -> str:
    """Text that a guest sent, for the audit log: whatever is not printable ASCII is escaped, and the end cut off."""
    safe = "".join(char if char.isprintable() and char.isascii() else ascii(char)[1:-1] for char in text)
    return safe if len(safe) <= limit else safe[: limit - 3] + "..."
