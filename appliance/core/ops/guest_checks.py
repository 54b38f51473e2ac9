"""What guests' sockets need of the system: the unit's drop-in, and what `doctor` looks at."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from appliance.core.config.addresses import UnixAddress, VsockAddress
from appliance.core.config.settings import Config, GuestsConfig
from appliance.core.process.groups import find_group, groups_of

REINSTALL = "run `gitmirror.pyz install` again, which opens the sandbox for it, and restart the service"


def guests_drop_in(config: Config) -> bytes:
    """The drop-in that opens the service's sandbox for the guests' sockets of a config; empty if that needs none."""
    lines = [f'ReadWritePaths="-{_for_unit(place)}"' for place in config.guests.socket_directories]
    if config.guests.socket_group:
        lines.append(f"SupplementaryGroups={config.guests.socket_group}")
    serve = config.serve
    if any(isinstance(address, VsockAddress) for address in (*serve.git, *serve.http, *serve.admin)):
        lines.append("RestrictAddressFamilies=AF_VSOCK")
    paths = {
        str(Path(each.path).parent) for each in (*serve.git, *serve.http, *serve.admin) if isinstance(each, UnixAddress)
    }
    lines += [f'ReadWritePaths="-{_for_unit(place)}"' for place in sorted(paths)]
    if not lines:
        return b""
    head = "# Written by `gitmirror.pyz install` from [guests] and [serve] of the config. After a change, run it again"
    return "\n".join([head, "# and restart the service.", "[Service]", *lines, ""]).encode()


def _for_unit(path: str) -> str:
    return path.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")


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
