"""The groups of the system, those that a process may give its files to, and those that let a user in."""

from __future__ import annotations

import grp
import os
import pwd
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


def how_to_get_in(path: Path) -> str:
    """What a user does who may not use `path`: join its group, where that would help, or use sudo."""
    try:
        status = path.stat()
        group = grp.getgrgid(status.st_gid).gr_name
        user = pwd.getpwuid(os.geteuid()).pw_name
    except (OSError, KeyError):
        return "run the command with sudo"
    # Nobody is told to join the group of root.
    if status.st_gid in (0, os.getegid(), *os.getgroups()) or not status.st_mode & 0o070:
        return "run the command with sudo"
    return f"join its group with `sudo usermod -aG {group} {user}` and log in again, or run the command with sudo"
