"""Returns unused memory to the kernel."""

from __future__ import annotations

import ctypes


def give_back_memory() -> None:
    """Returns the free pages of the C library's heap to the kernel; without glibc it does nothing.

    Memory that was freed after importing modules and reading the configuration is scattered between blocks in use, and
    glibc itself returns only free memory at the end of its heap (`malloc_trim(3)`). After the start of `serve` these
    pages are a tenth of its resident memory.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
