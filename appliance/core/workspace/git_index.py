"""git's index file, rewritten so that it holds on another machine (gitformat-index).

With `core.checkStat=minimal` and `core.trustctime=false` git compares mtime and size alone. Every file of a snapshot
has one mtime long past and the index one a second later: any edit then has another mtime and is seen, also one of the
same size in the second of extraction, and nothing needs hashing again.
"""

from __future__ import annotations

import hashlib
import struct

FILE_TIME = 1_000_000_000
"""The mtime of every file of a snapshot: 2001-09-09. tar and FAT cannot hold times before 1980."""
INDEX_TIME = FILE_TIME + 1

_HEADER = struct.Struct(">4sLL")
_FIXED = 62
"""Bytes of an entry before its name with SHA-1: ten words of stat, the object id, the flags."""
_STAT = struct.Struct(">10L")
_FLAGS = struct.Struct(">H")


class UnknownIndex(ValueError):
    """Not an index of version 2 with SHA-1 object ids."""


def normalise_index(data: bytes) -> bytes:
    """The same index with FILE_TIME as every mtime and nothing of this machine in it. Raises UnknownIndex."""
    magic, version, count = _HEADER.unpack_from(data)
    if magic != b"DIRC" or version != 2:
        raise UnknownIndex(f"index of version {version}, only 2 can be rewritten")
    out = bytearray(data[:-20])
    at = _HEADER.size
    for _ in range(count):
        _, _, mtime, _, _, _, mode, _, _, size = _STAT.unpack_from(out, at)
        # A gitlink was never stat'ed: all zero says so, and stays.
        when = FILE_TIME if mtime else 0
        _STAT.pack_into(out, at, 0, 0, when, 0, 0, 0, mode, 0, 0, size)
        length = _FLAGS.unpack_from(out, at + 60)[0] & 0xFFF
        end = at + _FIXED + length if length < 0xFFF else out.index(0, at + _FIXED)
        # Padded with NULs to a multiple of eight, one at least.
        at += ((end - at) // 8 + 1) * 8
    return bytes(out) + hashlib.sha1(out, usedforsecurity=False).digest()
