"""Tells a unix socket's file from every other file that was or will be at its path."""

from __future__ import annotations

import contextlib
import os
import stat


def identity_of(status: os.stat_result) -> str:
    """What identifies a file as long as this program knows of it: its device, its inode, and when it was made.

    An inode's number alone is given to another file once it is free; a socket's mtime stays that of its creation.
    """
    return f"{status.st_dev}:{status.st_ino}:{status.st_mtime_ns}"


def socket_identity(path: str) -> str | None:
    """What identifies the socket at a path, or None if no socket is there. Links are not followed."""
    with contextlib.suppress(OSError):
        status = os.lstat(path)
        if stat.S_ISSOCK(status.st_mode):
            return identity_of(status)
    return None
