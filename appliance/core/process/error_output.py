"""Reads a bounded part of a child's error output, without a pipe that somebody has to empty."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator

MOST_BYTES = 8192
"""Bytes that are kept: some dozens of lines."""


@contextlib.contextmanager
def error_output(hear: Callable[[str], None]) -> Iterator[int]:
    """Yields a memory file for the stderr of one child, and calls `hear` at the end if anything was written to it.

    The file cannot grow, so a child that writes more neither waits nor takes memory: its writes fail, which programs
    ignore on stderr. Raises OSError if there is no descriptor for it.
    """
    descriptor = os.memfd_create("stderr", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, MOST_BYTES)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
        try:
            yield descriptor
        finally:
            if printed := os.pread(descriptor, MOST_BYTES, 0).rstrip(b"\0"):
                hear(printed.decode(errors="replace"))
    finally:
        os.close(descriptor)
