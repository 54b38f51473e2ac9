"""Escapes text from guests, upstreams and files, so that it can be shown safely. Pure; no other module has such rules.

A terminal interprets C0 and C1 control characters as commands: they move the cursor, change colours and titles, even
type. A line break can begin a line that looks like one of ours, and bidirectional controls reorder text
(CVE-2021-42574). All of them are shown as escapes such as `\\x1b` or `\\u202e`. Everything that is printed, logged,
drawn or sent to a guest passes `escape`. JSON does not need it, because `json.dumps` escapes everything that is not
printable ASCII.
"""

from __future__ import annotations

import re

_CONTROLS = "\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
"""C0 except tab and line ends; DEL and C1; bidirectional controls; line and paragraph separators."""

_UNSHOWABLE = re.compile(f"[{_CONTROLS}\t\n\r\ud800-\udfff]")
# Other bytes that are not UTF-8 stay unless they are C1 controls, because a patch of a Latin-1 file must still apply.
_UNSHOWABLE_IN_PATCH = re.compile(f"[{_CONTROLS}\udc80-\udc9f]|\r(?!\n)")

_SHORT = {"\t": "\\t", "\n": "\\n", "\r": "\\r"}


def escape(text: str, *, keep: str = "") -> str:
    """Replaces every character that must not reach a terminal by a visible escape, except the characters in `keep`.

    Bytes that were not UTF-8 (surrogates from `surrogateescape`) become `\\xNN`, so that the result can be encoded.
    """
    if text.isprintable():
        return text
    return _UNSHOWABLE.sub(lambda match: match[0] if match[0] in keep else _visible(match[0]), text)


def escape_patch(data: bytes) -> bytes:
    """Escapes control characters in lines of a diff; lines without control characters stay the same byte for byte."""
    text = data.decode("utf-8", "surrogateescape")
    return _UNSHOWABLE_IN_PATCH.sub(lambda match: _visible(match[0]), text).encode("utf-8", "surrogateescape")


def _visible(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:
        code -= 0xDC00
    return _SHORT.get(char) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")


def storable(name: str) -> str:
    """Makes a ref name storable as text: git allows any bytes, and those that are not UTF-8 become `\\xNN`."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def escape_ascii(text: str, limit: int = 300) -> str:
    """Escapes everything but printable ASCII in text that a guest sent, for the audit log, and cuts it to `limit`."""
    safe = "".join(char if char.isprintable() and char.isascii() else ascii(char)[1:-1] for char in text)
    return safe if len(safe) <= limit else safe[: limit - 3] + "..."
