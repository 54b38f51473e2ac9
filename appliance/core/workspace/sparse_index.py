"""Marks the entries of an index that a part of a tree leaves out (gitformat-index, "skip-worktree").

git does so for an entry outside of the cone: the bit is in the extended flags, which only version 3 has, and there is
no stat data.
"""

from __future__ import annotations

import hashlib
import os
import struct

from appliance.core.workspace.cone import cone_of, directories_above

_HEADER = struct.Struct(">4sLL")
_FIXED = 62
_FLAGS = struct.Struct(">H")
_SIZE = struct.Struct(">L")
_EXTENDED = 0x4000
_SKIP_WORKTREE = b"\x40\x00"
_NO_STAT = bytes(24)
"""Both times, device and inode."""


def leave_out(index: bytes, only: tuple[str, ...]) -> tuple[bytes, frozenset[str], int]:
    """An index of version 2 as version 3 in which the entries outside of the cone of `only` are marked.

    Also returns what the cone has: the paths of its entries, and of all directories that these are in. Then the bytes
    of the files that it does not have.
    """
    _, _, count = _HEADER.unpack_from(index)
    cone, there, bytes_left_out = cone_of(only), set[str](), 0
    marked = False
    out, at = [b""], _HEADER.size
    for _ in range(count):
        flags = _FLAGS.unpack_from(index, at + 60)[0]
        length = flags & 0xFFF
        end = at + _FIXED + length if length < 0xFFF else index.index(0, at + _FIXED)
        padded = at + ((end - at) // 8 + 1) * 8
        path = os.fsdecode(index[at + _FIXED : end])
        if path in cone:
            there.add(path)
            out.append(index[at:padded])
        else:
            marked = True
            bytes_left_out += _SIZE.unpack_from(index, at + 36)[0]
            # The mode stands between the inode and the owner.
            entry = _NO_STAT + index[at + 24 : at + 28] + bytes(12) + index[at + 40 : at + 60]
            entry += _FLAGS.pack(flags | _EXTENDED) + _SKIP_WORKTREE + index[at + _FIXED : end]
            out.append(entry + bytes(8 - len(entry) % 8))
        at = padded
    out[0] = _HEADER.pack(b"DIRC", 3 if marked else 2, count)
    out.append(index[at:-20])
    data = b"".join(out)
    there.update([above for path in there for above in directories_above(path)])
    return data + hashlib.sha1(data, usedforsecurity=False).digest(), frozenset(there), bytes_left_out
