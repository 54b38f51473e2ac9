"""Memory that is free goes back to the kernel, though something above it in the heap is still in use."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
from pathlib import Path
from appliance.core.process.memory import give_back_memory

def resident_kib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4

blocks = [bytes(4096) for _ in range(10_000)]
del blocks[:-1]
before = resident_kib()
give_back_memory()
print(before - resident_kib())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has malloc_trim")
def test_free_memory_goes_back_to_the_kernel() -> None:
    """The last of 40 MB of blocks keeps glibc from returning the others by itself."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True)
    assert int(done.stdout) > 30_000
