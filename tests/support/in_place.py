"""Files changed in place: the same inode and the same size, and as far as anybody can set them, the same times."""

from __future__ import annotations

import os
from pathlib import Path


def change_in_place(path: Path, *, at: float = 0.5) -> bytes:
    """Flips a bit of one byte, `at` this part of the file, and sets the times back. Returns the old content."""
    before, whole = path.stat(), path.read_bytes()
    offset = int(len(whole) * at)
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(bytes([whole[offset] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (before.st_ino, before.st_size, before.st_mtime_ns)
    return whole


def touch_all_but_the_content(path: Path) -> None:
    """Gives a file another inode and other times, as an operator does who copies a directory back."""
    copy = path.with_name(f"{path.name}.copy")
    copy.write_bytes(path.read_bytes())
    copy.rename(path)
