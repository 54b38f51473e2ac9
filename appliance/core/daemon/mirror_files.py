"""Deletes everything on disk that belongs to one repository."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from appliance.core.git.mirrors import Mirrors
from appliance.core.lfs.objects import LfsObjects
from appliance.core.recording.attachments import Attachments
from appliance.core.workspace.disk.disks import Disks
from appliance.core.workspace.snapshots import Snapshots


@dataclass(frozen=True)
class MirrorFiles:
    """The rooms that have such files. Cached responses go as soon as a repository is unregistered."""

    mirrors: Mirrors
    workspaces: Snapshots
    disks: Disks
    attachments: Attachments
    lfs: LfsObjects

    async def delete(self, name: str, end_sessions: Callable[[float], None]) -> None:
        """Deletes the mirror and everything beside it. Raises OSError, StoreError.

        `end_sessions` gets Unix seconds. It ends what a push recorded that the deletion had to wait for.
        """
        async with self.mirrors.locks.exclusive(name):
            await self.delete_mirror(name)
            await asyncio.to_thread(end_sessions, time.time())
        await self.delete_others(name)

    async def delete_mirror(self, name: str) -> None:
        """Deletes the mirror alone. The caller has its lock. Raises OSError."""
        await asyncio.to_thread(self.mirrors(name).discard)

    async def delete_others(self, name: str) -> None:
        """Deletes snapshots, disks, LFS objects, attachments without a turn, and a first clone that failed."""
        await asyncio.to_thread(shutil.rmtree, self.mirrors.layout.incoming(name), ignore_errors=True)
        await self.workspaces.delete(name)
        await self.disks.delete(name)
        await self.lfs.purge(name)
        await self.attachments.sweep(name)


def has_files(directory: Path) -> bool:
    """Whether there is a file in one of the directories in `directory`."""
    return any(path.is_file() for path in directory.glob("*/*"))
