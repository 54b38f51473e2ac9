"""Who may read the drives: the service's own group, or the group of `[workspace] disk_group`.

Because of the service's umask, nobody else can read the files that it writes, so this module sets the modes explicitly.
A VMM that is not in the service's group reaches a drive by its path: it may traverse the directories, but list none.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from appliance.core.errors import GitmirrorError
from appliance.core.process.groups import find_group, groups_of
from appliance.core.workspace.disk.images import DiskImage, DiskPlace

HINT = (
    "`systemctl edit gitmirror` with [Service], SupplementaryGroups={group} and StateDirectoryMode=0751; then restart"
)


class NotShared(GitmirrorError):
    """The group of `[workspace] disk_group` cannot be given the drives."""


def group_id(group: str) -> int:
    """The id of the group that drives belong to: the named group, or the service's own if the name is empty.

    Raises NotShared if there is no such group.
    """
    number = find_group(group)
    if number is None:
        raise NotShared(f"there is no group {group} on this node", hint="create it, or correct [workspace] disk_group")
    return number


def share_drives(top: Path, place: DiskPlace, image: DiskImage, group: str) -> None:
    """Lets the group read an image's drives, and traverse the directories from `top` down to them.

    Changes only modes and owners that differ. Raises OSError; NotShared if the service may not give files to the group.
    """
    number, directory_mode = group_id(group), 0o751 if group else 0o750
    data, tree = place.data(image), place.tree(image)
    for directory in _directories(top, tree.parent):
        _set_mode(directory, directory_mode)
    for drive in (tree, data) if data else (tree,):
        if drive.stat().st_gid != number:
            try:
                os.chown(drive, -1, number)
            except PermissionError as error:
                raise NotShared(
                    f"this service may not give files to the group {group}", hint=HINT.format(group=group)
                ) from error
        _set_mode(drive, 0o640)


def problem_of_group(group: str, state: Path, pid: int | None) -> tuple[str, str] | None:
    """What keeps members of a group from reading the drives below `state`, and how to fix it; None if nothing does.

    `pid` is the running service: only the process itself shows the groups that systemd gave it. Never raises.
    """
    try:
        number = group_id(group)
        status = state.stat()
        if pid is not None and number not in groups_of(pid):
            return f"the service is not in the group {group}, so it may not give files to it", HINT.format(group=group)
    except NotShared as error:
        return error.message, error.hint
    except OSError:
        # Before the first start, or without permission to look: another check reports both.
        return None
    if not status.st_mode & stat.S_IXOTH and not (status.st_gid == number and status.st_mode & stat.S_IXGRP):
        return f"members of {group} cannot pass through {state}", HINT.format(group=group)
    return None


def _directories(top: Path, lowest: Path) -> Iterator[Path]:
    yield lowest
    while lowest != top:
        lowest = lowest.parent
        yield lowest


def _set_mode(path: Path, mode: int) -> None:
    if stat.S_IMODE(path.stat().st_mode) != mode:
        path.chmod(mode)
