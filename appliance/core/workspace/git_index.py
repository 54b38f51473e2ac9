"""git's index file, rewritten so that it holds on another machine (gitformat-index).

Every entry gets the mtime that `times` gives its file in the tar, and nothing else of this machine's stat data: then
nothing needs hashing again, and every change is seen.
"""

from __future__ import annotations

import hashlib
import os
import struct

from appliance.core.workspace.times import file_time

_HEADER = struct.Struct(">4sLL")
_FIXED = 62
"""Bytes of an entry before its name with SHA-1: ten words of stat, the object id, the flags."""
_STAT = struct.Struct(">10L")
_FLAGS = struct.Struct(">H")


class UnknownIndex(ValueError):
    """Not an index of version 2 with SHA-1 object ids."""


def normalise_index(data: bytes) -> tuple[bytes, dict[str, int]]:
    """The same index with nothing of this machine in it, and the mtime of each path in it. Raises UnknownIndex."""
    magic, version, count = _HEADER.unpack_from(data)
    if magic != b"DIRC" or version != 2:
        raise UnknownIndex(f"index of version {version}, only 2 can be rewritten")
    out = bytearray(data[:-20])
    times: dict[str, int] = {}
    at = _HEADER.size
    for _ in range(count):
        _, _, mtime, _, _, _, mode, _, _, size = _STAT.unpack_from(out, at)
        # A gitlink was never stat'ed: all zero says so, and stays.
        when = file_time(data[at + _STAT.size : at + _STAT.size + 20]) if mtime else 0
        _STAT.pack_into(out, at, 0, 0, when, 0, 0, 0, mode, 0, 0, size)
        length = _FLAGS.unpack_from(out, at + 60)[0] & 0xFFF
        end = at + _FIXED + length if length < 0xFFF else out.index(0, at + _FIXED)
        if when:
            times[os.fsdecode(data[at + _FIXED : end])] = when
        # Padded with NULs to a multiple of eight, one at least.
        at += ((end - at) // 8 + 1) * 8
    return bytes(out) + hashlib.sha1(out, usedforsecurity=False).digest(), times
