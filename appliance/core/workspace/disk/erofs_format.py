"""The structures of EROFS on disk (`fs/erofs/erofs_fs.h` in Linux), as far as `erofs` writes them.

All numbers are little-endian. A node's number (nid) is its distance from the first block of inodes in units of 32
bytes. Block addresses have 32 bits, and all ones is no address.
"""

from __future__ import annotations

import stat
import struct

BLOCK = 4096
"""Bytes of a block."""
SUPERBLOCK_AT = 1024
"""Where the superblock begins. EROFS does not use the bytes before it."""
INODES_BLOCK = 1
"""The block from which nids count. In block 0, the device table follows the superblock."""
NID_UNIT = 32
"""Bytes to which inodes are aligned."""
MOST_BLOCKS = 0xFFFFFFFF
"""The largest block address."""
LABEL_BYTES = 15
"""The most bytes of a label: the field has 16, and some kernels want a NUL at its end."""
TAG_BYTES = 64
"""The most bytes of the tag of a device."""
NAME_BYTES = 255
"""The most bytes of a name, in Linux and in EROFS."""
TARGET_BYTES = 4095
"""The most bytes of the target of a symbolic link that Linux follows."""

FILE, DIRECTORY, LINK = 1, 2, 7
"""The types of nodes in directory entries."""

ENTRY = struct.Struct("<QHBx")
"""An entry of a directory: nid, where its name begins in the block, type."""

COMPACT = struct.Struct("<HHHHI4xII4x4x")
"""A compact inode: format, count of xattrs, mode, links, size, first block, number. Owner 0:0, the image's mtime."""
EXTENDED = struct.Struct("<QQII4x4xqQ16x")
"""An extended inode: `extended_head`, size, first block, number, mtime, and the links in the upper half of a quadword.

The owner is 0:0. Fields that are always the same, or 0, are joined, because packing takes time for each argument.
"""

PLAIN, INLINE = 0, 2
"""How contents lie: all in whole blocks, or what does not fill the last block behind the inode."""
_EXTENDED = 1


def compact_format(layout: int) -> int:
    """The first field of a compact inode."""
    return layout << 1


def extended_head(layout: int, mode: int) -> int:
    """The first quadword of an extended inode: format, no xattrs, mode, reserved."""
    return layout << 1 | _EXTENDED | mode << 32


def extended_links(count: int) -> int:
    """The quadword with the number of links of an extended inode, behind the nanoseconds, which are 0."""
    return count << 32


DIRECTORY_MODE = stat.S_IFDIR | 0o755
FILE_MODE = stat.S_IFREG | 0o644
EXECUTABLE_MODE = stat.S_IFREG | 0o755
LINK_MODE = stat.S_IFLNK | 0o777

_MAGIC = 0xE0F5E1E2
_HAS_CHECKSUM, _HAS_MTIME = 1, 2
_DEVICE_TABLE = 8
_BLOCK_BITS = 12
_SUPERBLOCK = struct.Struct("<IIIBBHQQIIII16s16sIHHHBBI32x")
"""magic, checksum, compatible features, bits of a block, extra slots, nid of the root, inodes, build time and its
nanoseconds, blocks, first block of inodes, of xattrs, UUID, label, incompatible features, compression, extra devices,
slot of the device table, and what is not used."""
_CHECKSUM = struct.Struct("<I")
_DEVICE = struct.Struct("<64sII56x")
"""A slot of the device table: tag, blocks, and from which block address the device is seen."""

_POLYNOMIAL = 0x82F63B78
"""Of CRC-32C (Castagnoli), with its bits in the other order."""


def _table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return table


def crc32c(data: bytes | bytearray) -> int:
    """CRC-32C as the kernel's `crc32c(~0, data)`: without the final inversion that others make."""
    table, crc = _table(), 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc


def first_block(
    *,
    root_nid: int,
    inodes: int,
    blocks: int,
    label: bytes,
    uuid: bytes,
    build_time: int,
    device: tuple[bytes, int, int] | None,
) -> bytes:
    """Block 0: zeros, the superblock and the device table.

    `blocks` are those of this device. `device` is the tag, the number of blocks and the first block address of the
    second one, if there is one. The checksum covers the superblock and the rest of the block, but not the bytes
    before it (`erofs_superblock_csum_verify` in `fs/erofs/super.c`).
    """
    superblock = _SUPERBLOCK.pack(
        _MAGIC,
        0,
        _HAS_CHECKSUM | _HAS_MTIME,
        _BLOCK_BITS,
        0,
        root_nid,
        inodes,
        build_time,
        0,
        blocks,
        INODES_BLOCK,
        0,
        uuid,
        label,
        _DEVICE_TABLE if device else 0,
        0,
        1 if device else 0,
        (SUPERBLOCK_AT + _SUPERBLOCK.size) // _DEVICE.size if device else 0,
        0,
        0,
        0,
    )
    table = _DEVICE.pack(*device) if device else b""
    checked = bytearray((superblock + table).ljust(BLOCK - SUPERBLOCK_AT, b"\0"))
    _CHECKSUM.pack_into(checked, 4, crc32c(checked))
    return bytes(SUPERBLOCK_AT) + checked
