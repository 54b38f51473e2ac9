"""Finds the processes that use a directory, to end them and to prove that none is left."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path


def processes_of(path: Path) -> list[int]:
    """Return the pids of all processes whose arguments, environment, working directory or open files involve `path`.

    A child of the appliance has a session of its own and may be orphaned, so neither group nor parent would find it.
    """
    here = re.compile(re.escape(os.fsencode(path)) + rb"(?![\w.-])")
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid() and _mentions(entry, here):
            found.append(int(entry.name))
    return found


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process and its reaped children have taken, to a hundredth of a second.

    Other work on the machine does not lengthen it, as it does the time on the clock.
    """
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def _mentions(process: Path, pattern: re.Pattern[bytes]) -> bool:
    for name in ("cmdline", "environ"):
        with contextlib.suppress(OSError):
            if pattern.search((process / name).read_bytes()):
                return True
    links = [process / "cwd"]
    with contextlib.suppress(OSError):
        links += (process / "fd").iterdir()
    for link in links:
        with contextlib.suppress(OSError):
            if pattern.search(os.fsencode(link.readlink())):
                return True
    return False
