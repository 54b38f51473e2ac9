"""What `doctor` looks at for guests' sockets: their directories, as the service sees them, and their group."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from appliance.core.config.settings import GuestsConfig
from appliance.core.process.groups import find_group, groups_of

REINSTALL = "run `gitmirror.pyz install` again, which opens the sandbox for it, and restart the service"


def problems_of_sockets(config: GuestsConfig, pid: int | None) -> Iterator[tuple[str, str]]:
    """What is in the way of guests' sockets, and how to fix it. `pid` is the running service. Never raises."""
    for place in config.socket_directories:
        if not Path(place).is_dir():
            yield f"{place} is not a directory", "create it, or correct [guests] socket_directories"
        elif not os.access(place, os.W_OK | os.X_OK, effective_ids=True):
            yield f"{place} cannot be written by the service's user", "give it write permission, for example by a group"
        elif pid is not None and (trouble := _sandboxed(place, pid)):
            yield trouble, REINSTALL
    if not config.socket_group:
        return
    number, group = find_group(config.socket_group), config.socket_group
    if number is None:
        yield f"there is no group {group} on this node", "create it, or correct [guests] socket_group"
        return
    try:
        is_member = pid is None or number in groups_of(pid)
    except OSError:
        return
    if not is_member:
        yield f"the service is not in the group {group}, so it may not give sockets to it", REINSTALL


def _sandboxed(place: str, pid: int) -> str | None:
    """Why a directory cannot be written in the mounts of a process; None if it can, or if this user may not look."""
    try:
        inside = os.statvfs(f"/proc/{pid}/root{place}")
    except FileNotFoundError:
        return f"the sandbox of the service hides {place}"
    except OSError:
        return None
    return f"{place} is read-only in the sandbox of the service" if inside.f_flag & os.ST_RDONLY else None
