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
    here, own = _pattern(path), os.getpid()
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != own and _mentions(name, here)]


def mentions(pid: int, path: Path) -> bool:
    """Whether this process is one of those."""
    return _mentions(str(pid), _pattern(path))


def _pattern(path: Path) -> re.Pattern[bytes]:
    return re.compile(re.escape(os.fsencode(path)) + rb"(?![\w.-])")


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process and its reaped children have taken, to a hundredth of a second.

    Other work on the machine does not lengthen it, as it does the time on the clock.
    """
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def _mentions(pid: str, pattern: re.Pattern[bytes]) -> bool:
    # There may be thousands of open files, so there is no `Path` for each.
    process = b"/proc/" + pid.encode()
    for name in (b"/cmdline", b"/environ"):
        with contextlib.suppress(OSError), open(process + name, "rb", buffering=0) as file:
            said = file.read()
            if pattern.search(said):
                return True
            if name == b"/cmdline" and not said:
                return False  # A thread of the kernel, as a third of all are, or one that has ended.
    links = [process + b"/cwd"]
    with contextlib.suppress(OSError):
        links += [process + b"/fd/" + number for number in os.listdir(process + b"/fd")]
    for link in links:
        with contextlib.suppress(OSError):
            if pattern.search(os.readlink(link)):
                return True
    return False
