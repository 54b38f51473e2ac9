"""The text at the beginning of each drive, which lets the guest kit check a drive before it mounts it.

Neither EROFS nor ext4 uses the first 1024 bytes of a file system. In the blob file, all of block 0 is reserved for the
text. So a shell script can find out what a drive holds with `head -c 1024`, without a tool for the file system.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

LENGTH = 1024
"""Bytes at the beginning of a drive that hold the text, padded with NULs."""
BLOCK = 4096
"""Bytes of a block. The check covers what follows the first block, because EROFS checks that block itself."""
CHECKED_FILES = (b"HEAD", b"config", b"packed-refs", b"index")
"""The files that say what the workspace is. ext4 has checksums of its metadata, but none of files."""
FIRST_LINE = "gitmirror disk 1"
"""The first line, with the version of the text."""

_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def header(fields: Mapping[str, str]) -> bytes:
    """The text with one line `KEY VALUE` for each field, padded to LENGTH bytes.

    A tree drive has these fields, in this order: `role tree`, `format erofs|ext4`, `repository OWNER/REPO`, `commit
    OID`, `size BYTES` (of the whole drive), `check CRC BYTES` (what `cksum` prints for that many bytes after the first
    block) or, for ext4, `git CRC BYTES` (what it prints for CHECKED_FILES of `.git`, one after the other) and, if it
    needs a second drive, `data ID BYTES` (the id of the data drive, and how many of its bytes the tree refers to). A
    data drive has `role data` and `id ID`.
    """
    text = "".join(f"{line}\n" for line in [FIRST_LINE, *(f"{key} {value}" for key, value in fields.items())]).encode()
    assert len(text) <= LENGTH
    return text.ljust(LENGTH, b"\0")


class Cksum:
    """The CRC that POSIX `cksum` prints, of everything passed to `update`.

    It is CRC-32 with reversed bits and without the usual start value, over the data and then its length.
    """

    def __init__(self) -> None:
        self._crc = 0xFFFFFFFF
        self._length = 0

    def update(self, data: bytes) -> None:
        """Adds more bytes."""
        self._crc = zlib.crc32(data.translate(_REVERSED), self._crc)
        self._length += len(data)

    def value(self) -> int:
        """The CRC, as the first number that `cksum` prints."""
        length = self._length
        tail = length.to_bytes((length.bit_length() + 7) // 8, "little")
        return int(f"{zlib.crc32(tail.translate(_REVERSED), self._crc):032b}"[::-1], 2)
