"""The notes of a turn: push options of the form `gitmirror.note=KEY=VALUE`. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from appliance.core.models import PushFault
from appliance.core.text import escape_ascii

OPTION = b"gitmirror.note="
MOST_NOTES = 64
LARGEST_NOTE = 4096
"""The most bytes of a value."""

_KEY = re.compile(rb"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_REFUSED = "the notes of this push are refused"


def is_note(key: str, value: str) -> bool:
    """Whether a turn may have this note."""
    return bool(_KEY.fullmatch(key.encode("utf-8", "replace"))) and len(value) <= LARGEST_NOTE


def notes_of(options: Sequence[bytes]) -> dict[str, str]:
    """The notes among the push options; of two with one key, the last. Other options are ignored, as git does.

    Bytes that are not UTF-8 are replaced. Raises PushFault for a malformed note, a long one, and too many.
    """
    notes: dict[str, str] = {}
    for option in options:
        if not option.startswith(OPTION):
            continue
        key, equals, value = option.removeprefix(OPTION).partition(b"=")
        if not equals or not _KEY.fullmatch(key):
            shown = escape_ascii(key.decode("utf-8", "replace"), 80)
            raise PushFault(f"{_REFUSED}: {shown} is not KEY=VALUE with a key of 1 to 64 of A-Z a-z 0-9 . _ -")
        if len(value) > LARGEST_NOTE:
            raise PushFault(f"{_REFUSED}: {key.decode()} has {len(value)} bytes, at most {LARGEST_NOTE} are allowed")
        notes[key.decode()] = value.decode("utf-8", "replace")
        if len(notes) > MOST_NOTES:
            raise PushFault(f"{_REFUSED}: there are more than {MOST_NOTES}")
    return notes
