"""Rewrites git's index file so that it is valid on another machine (gitformat-index).

Every entry gets the mtime that `times` assigns to its file in the tar, and no other stat data of this machine. So git
rehashes nothing in a guest, and still sees every change.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Mapping

from appliance.core.workspace.times import file_time

_HEADER = struct.Struct(">4sLL")
_FIXED = 62
"""Bytes of an entry before its name with SHA-1: ten words of stat data, the object id and the flags."""
_STAT = struct.Struct(">10L")
_FLAGS = struct.Struct(">H")


class UnknownIndex(ValueError):
    """The index is not of version 2 with SHA-1 object ids."""


def normalise_index(data: bytes, sizes: Mapping[str, int] | None = None) -> tuple[bytes, dict[str, int]]:
    """The index without this machine's stat data, and the mtime that each path in it needs.

    `sizes` are those of files that the workspace has in another form than the checkout does: LFS files with their
    content. Their mtime is still derived from the blob, a pointer, which names the content. Raises UnknownIndex.
    """
    sizes = sizes or {}
    magic, version, count = _HEADER.unpack_from(data)
    if magic != b"DIRC" or version != 2:
        raise UnknownIndex(f"the index has version {version}, but only version 2 can be rewritten")
    out = bytearray(data[:-20])
    times: dict[str, int] = {}
    at = _HEADER.size
    for _ in range(count):
        _, _, mtime, _, _, _, mode, _, _, size = _STAT.unpack_from(out, at)
        # A gitlink has no stat data. All zeros mark that, so they stay.
        when = file_time(data[at + _STAT.size : at + _STAT.size + 20]) if mtime else 0
        length = _FLAGS.unpack_from(out, at + 60)[0] & 0xFFF
        end = at + _FIXED + length if length < 0xFFF else out.index(0, at + _FIXED)
        path = os.fsdecode(data[at + _FIXED : end])
        if when:
            times[path] = when
            size = _word(sizes[path]) if path in sizes else size
        _STAT.pack_into(out, at, 0, 0, when, 0, 0, 0, mode, 0, 0, size)
        # An entry is padded with NULs to a multiple of eight bytes, with at least one NUL.
        at += ((end - at) // 8 + 1) * 8
    return bytes(out) + hashlib.sha1(out, usedforsecurity=False).digest(), times


def _word(size: int) -> int:
    """A file's size as the index has it: modulo 2**32, but not 0, which means that git must read the file."""
    return size & 0xFFFF_FFFF or (0x8000_0000 if size else 0)
