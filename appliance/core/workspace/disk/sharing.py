"""Who may read the drives: the service's own group, or the group of `[workspace] disk_group`.

The service's umask lets nobody else read what it writes, so modes are set by name. A VMM that is no member of the
service's group reaches a drive by its path: it may pass through the directories, and list none of them.
"""

from __future__ import annotations

import grp
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from appliance.core.errors import GitmirrorError
from appliance.core.workspace.disk.images import DiskImage, DiskPlace

HINT = (
    "`systemctl edit gitmirror` with [Service], SupplementaryGroups={group} and StateDirectoryMode=0751; then restart"
)


class NotShared(GitmirrorError):
    """The group of `[workspace] disk_group` cannot be given the drives."""


def group_id(group: str) -> int:
    """The number of the group that drives belong to: that of the name, or the service's own if empty.

    Raises NotShared if there is no such group.
    """
    if not group:
        return os.getegid()
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise NotShared(
            f"there is no group {group} on this node", hint="create it, or correct [workspace] disk_group"
        ) from None


def share_drives(top: Path, place: DiskPlace, image: DiskImage, group: str) -> None:
    """Lets the group read an image's drives, and pass through the directories from `top` down to them.

    Changes only what differs. Raises OSError; NotShared if the service may not give files to the group.
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


def _directories(top: Path, lowest: Path) -> Iterator[Path]:
    yield lowest
    while lowest != top:
        lowest = lowest.parent
        yield lowest


def _set_mode(path: Path, mode: int) -> None:
    if stat.S_IMODE(path.stat().st_mode) != mode:
        path.chmod(mode)
