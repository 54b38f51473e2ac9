"""Writes the git index of a workspace from scratch (gitformat-index, version 2), with no file to look at."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable

from appliance.core.workspace.disk.mirror_reader import TREE

_ENTRY = struct.Struct(">8xL12xL8xL20sH")
"""mtime, mode, size, object id and flags. Zero are ctime, the nanoseconds, device, inode, owner and group, which git
does not compare with `core.checkStat=minimal`."""
_PADDING = [bytes(8 - (_ENTRY.size + length) % 8) for length in range(8)]
"""An entry is padded with one to eight NULs to a multiple of eight bytes, by the length of its name modulo eight."""


IndexEntry = tuple[int, bytes, bytes, int, int]
"""The mode, object id and path of a file, link or submodule, with the mtime and size of its file. With the mode TREE, a
directory."""


def write_index(tree: bytes, entries: Iterable[IndexEntry]) -> bytes:
    """The index of a checkout of `tree`, from its entries in the order of `MirrorReader.listing`.

    With the ids of all trees in it (the TREE extension), git finds without reading them that nothing is staged.
    """
    out = bytearray(b"DIRC\0\0\0\2\0\0\0\0")
    pack, count = _ENTRY.pack, 0
    top = _Tree(b"", tree, 0)
    trees, path_of = [top], [b""]
    ended: list[_Tree] = [top]
    for mode, oid, path, mtime, size in entries:
        while len(path_of) > 1 and not path.startswith(path_of[-1]):
            path_of.pop()
            trees.pop().ends_at(count)
        if mode == TREE:
            parent = trees[-1]
            tree_entry = _Tree(path[len(path_of[-1]) :], oid, count)
            parent.subtrees += 1
            trees.append(tree_entry)
            ended.append(tree_entry)
            path_of.append(path + b"/")
            continue
        length = len(path)
        out += pack(mtime, mode, size & 0xFFFFFFFF, oid, min(length, 0xFFF))
        out += path
        out += _PADDING[length % 8]
        count += 1
    while trees:
        trees.pop().ends_at(count)
    struct.pack_into(">L", out, 8, count)
    extension = b"".join(b"%s\0%d %d\n%s" % (one.name, one.entries, one.subtrees, one.oid) for one in ended)
    out += b"TREE" + struct.pack(">L", len(extension)) + extension
    out += hashlib.sha1(out, usedforsecurity=False).digest()
    return bytes(out)


class _Tree:
    """One tree of the TREE extension: how many entries of the index are below it, and how many trees in it."""

    __slots__ = ("entries", "first", "name", "oid", "subtrees")

    def __init__(self, name: bytes, oid: bytes, first: int) -> None:
        self.name, self.oid, self.first = name, oid, first
        self.entries = self.subtrees = 0

    def ends_at(self, count: int) -> None:
        """Notes that the index has `count` entries up to the end of this tree."""
        self.entries = count - self.first
