"""The groups of the system, and those that a process may give its files to."""

from __future__ import annotations

import grp
import os
from pathlib import Path


def find_group(name: str) -> int | None:
    """The id of a group, or of this process's own if the name is empty; None if there is no such group."""
    if not name:
        return os.getegid()
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None


def groups_of(pid: int) -> set[int]:
    """The ids of the groups that a process may give its files to. Raises OSError."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    found = dict(line.split(":", 1) for line in lines)
    # With CAP_CHOWN (bit 0) it may give them to every group.
    if int(found["CapEff"], 16) & 1:
        return {entry.gr_gid for entry in grp.getgrall()}
    return {int(number) for key in ("Gid", "Groups") for number in found[key].split()}
