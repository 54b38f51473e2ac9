"""Reads an EROFS image, written from the description of the format and without a line of the writer.

It asserts what the kernel and fsck.erofs want, and what they do not look at: that nothing overlaps, that each number of
links is right, and that names are in order across the blocks of a directory.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

BLOCK = 4096


@dataclass(frozen=True)
class Found:
    """What a path is: its mode, mtime, size and contents; those of a directory are its names in order."""

    mode: int
    mtime: int
    content: bytes | tuple[bytes, ...]


@dataclass(frozen=True)
class _Inode:
    nid: int
    layout: int
    mode: int
    size: int
    first: int
    number: int
    mtime: int
    links: int
    at: int
    length: int

    @property
    def tail(self) -> int:
        """Bytes of contents that lie behind the inode."""
        return self.size % BLOCK if self.layout == 2 else 0


def _number(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "little")


def crc32c(data: bytes) -> int:
    """CRC-32C, bit by bit, without the final inversion."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ 0x82F63B78 if crc & 1 else crc >> 1
    return crc


@dataclass
class Image:
    """An image on one drive, or with a data drive."""

    tree: BinaryIO
    data: BinaryIO | None = None
    inodes: list[_Inode] = field(default_factory=list)
    """Those that `paths` met, in its order."""

    def __post_init__(self) -> None:
        head = self._read(self.tree, 0, BLOCK)
        block = head[1024:]
        assert _number(block, 0, 4) == 0xE0F5E1E2
        assert _number(block, 4, 4) == crc32c(block[:4] + bytes(4) + block[8:])
        assert _number(block, 8, 4) == 3 and block[12:14] == b"\x0c\0"
        self.root_nid, self.inode_count = _number(block, 14, 2), _number(block, 16, 8)
        self.build_time = _number(block, 24, 8)
        self.blocks, self.inodes_at = _number(block, 36, 4), _number(block, 40, 4) * BLOCK
        self.uuid, self.label = block[48:64], block[64:80].rstrip(b"\0")
        self.devices, slot = _number(block, 86, 2), _number(block, 88, 2)
        incompatible = _number(block, 80, 4)
        assert self.devices == (0 if self.data is None else 1) and incompatible == 8 * self.devices
        used = {13, *range(32, 36), *range(44, 48), 84, 85, *range(90, 128)}
        assert not any(block[index] for index in used)
        table = head[slot * 128 : slot * 128 + 128] if self.devices else bytes(128)
        self.tag = table[:64].rstrip(b"\0")
        self.data_blocks, self.data_at = _number(table, 64, 4), _number(table, 68, 4)
        assert not any(table[72:]) and not any(block[256 if self.devices else 128 :])
        if self.data is not None:
            assert slot == 9 and self.tag and self.data_at >= self.blocks

    @staticmethod
    def _read(file: BinaryIO, at: int, size: int) -> bytes:
        file.seek(at)
        data = file.read(size)
        assert len(data) == size, f"{size} bytes at {at} are not there"
        return data

    def _inode(self, nid: int) -> _Inode:
        at = self.inodes_at + nid * 32
        raw = self._read(self.tree, at, 32)
        form = _number(raw, 0, 2)
        assert form < 16 and not _number(raw, 2, 2)
        extended, layout = bool(form & 1), form >> 1
        assert layout in (0, 2)
        mode, first, number = _number(raw, 4, 2), _number(raw, 16, 4), _number(raw, 20, 4)
        if extended:
            raw += self._read(self.tree, at + 32, 32)
            assert not any(raw[6:8]) and not any(raw[24:32]) and not any(raw[40:44]) and not any(raw[48:])
            size, mtime, links = _number(raw, 8, 8), _number(raw, 32, 8), _number(raw, 44, 4)
        else:
            assert not any(raw[12:16]) and not any(raw[24:])
            size, mtime, links = _number(raw, 8, 4), self.build_time, _number(raw, 6, 2)
        found = _Inode(nid, layout, mode, size, first, number, mtime, links, at, len(raw))
        assert at // BLOCK == (at + len(raw) + found.tail - 1) // BLOCK, "an inode crosses a block"
        return found

    def content(self, inode: _Inode) -> bytes:
        """The contents of a file, link or directory, as they are on disk."""
        if not inode.size:
            return b""
        begin, size = inode.first * BLOCK, inode.size - inode.tail
        if inode.tail:
            tail = self._read(self.tree, inode.at + inode.length, inode.tail)
            return (self._read(self.tree, begin, size) if size else b"") + tail
        if self.data is not None and inode.first >= self.data_at:
            blocks = inode.first - self.data_at + -(-size // BLOCK)
            assert blocks <= self.data_blocks
            return self._read(self.data, begin - self.data_at * BLOCK, size)
        return self._read(self.tree, begin, size)

    def _entries(self, inode: _Inode) -> Iterator[tuple[bytes, int, int]]:
        content = self.content(inode)
        last = b""
        for at in range(0, len(content), BLOCK):
            block = content[at : at + BLOCK]
            count, odd = divmod(_number(block, 8, 2), 12)
            assert count and not odd
            begins = [_number(block, 12 * index + 8, 2) for index in range(count)]
            ends = [*begins[1:], len(block)]
            for index, (begin, end) in enumerate(zip(begins, ends, strict=True)):
                name = block[begin:end]
                if index == count - 1 and at + BLOCK < len(content):
                    name = name.rstrip(b"\0")
                assert 0 < len(name) <= 255 and b"\0" not in name and b"/" not in name and name > last
                last = name
                assert not block[12 * index + 11]
                yield name, _number(block, 12 * index, 8), block[12 * index + 10]

    def paths(self) -> dict[bytes, Found]:
        """Everything in the image, by path; the root has an empty one. In the order of git's index, `.git` last."""
        found: dict[bytes, Found] = {}
        # A set, because files with the same contents may share them.
        spans = {(0, self.inodes_at + 32)}
        todo = [(b"", self.root_nid, 2, self.root_nid)]
        self.inodes.clear()
        while todo:
            path, nid, kind, parent = todo.pop()
            inode = self._inode(nid)
            self.inodes.append(inode)
            assert kind == {stat.S_IFREG: 1, stat.S_IFDIR: 2, stat.S_IFLNK: 7}[stat.S_IFMT(inode.mode)]
            spans.add((inode.at, inode.at + inode.length + inode.tail))
            whole = -(-(inode.size - inode.tail) // BLOCK)
            if whole and not (self.data is not None and inode.first >= self.data_at):
                spans.add((inode.first * BLOCK, (inode.first + whole) * BLOCK))
            content: bytes | tuple[bytes, ...]
            if kind == 2:
                entries = list(self._entries(inode))
                own = {name: (number, kind) for name, number, kind in entries if name in (b".", b"..")}
                assert own == {b".": (nid, 2), b"..": (parent, 2)}
                below = [entry for entry in entries if entry[0] not in own]
                assert inode.links == 2 + sum(entry[2] == 2 for entry in below)
                content = tuple(name for name, _, _ in below)
                below.sort(key=lambda entry: (not path and entry[0] == b".git", entry[0] + b"/" * (entry[2] == 2)))
                todo += [(path + b"/" * bool(path) + name, number, kind, nid) for name, number, kind in reversed(below)]
            else:
                assert inode.links == 1 and inode.length == 64
                content = self.content(inode)
            assert path not in found
            found[path] = Found(inode.mode, inode.mtime, content)
        ordered = sorted(spans)
        assert all(before[1] <= after[0] for before, after in pairwise(ordered)), "something overlaps"
        assert ordered[-1][1] <= self.blocks * BLOCK
        assert len(found) == len({inode.nid for inode in self.inodes}) == self.inode_count
        return found


def read_image(tree: Path, data: Path | None = None) -> dict[bytes, Found]:
    """Everything in an image, by path."""
    with tree.open("rb") as file:
        if data is None:
            return Image(file).paths()
        with data.open("rb") as second:
            return Image(file, second).paths()
