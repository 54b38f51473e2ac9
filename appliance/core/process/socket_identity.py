"""Tells a unix socket's file from every other file that was or will be at its path."""

from __future__ import annotations

import contextlib
import os
import stat


def socket_identity(path: str) -> str | None:
    """What identifies the socket at a path (device, inode and when it was made), or None if no socket is there.

    An inode's number alone is given to another file once it is free. Links are not followed.
    """
    with contextlib.suppress(OSError):
        status = os.lstat(path)
        if stat.S_ISSOCK(status.st_mode):
            return f"{status.st_dev}:{status.st_ino}:{status.st_mtime_ns}"
    return None
