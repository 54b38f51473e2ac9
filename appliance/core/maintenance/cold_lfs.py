"""LFS objects as something that goes when the disk is short. Each can be fetched from the upstream again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from appliance.core.maintenance.usage import LFS
from appliance.core.process.cold import ColdThing, enough, open_files

REASON = "the state directory or its disk has no room ([storage] budget)"
_OID = re.compile(r"[0-9a-f]{64}")


class EvictedObject(Protocol):
    """An object that a store removed."""

    @property
    def repo(self) -> str:
        """Whose it was."""
        ...

    @property
    def oid(self) -> str:
        """Its SHA-256."""
        ...

    @property
    def size(self) -> int:
        """Its bytes."""
        ...


EvictOldest = Callable[[str], EvictedObject | None]
"""Removes the object that was used longest ago, for a reason; None if none can go now."""


class ColdLfsObjects:
    """The objects below `directory`, `<owner>/<repo>/<two hex digits>/<SHA-256>`.

    The time of a file says when its object was last used. What is being written has another name, and stays. A store
    that knows its objects removes them itself, with `evict_oldest`.
    """

    kind = LFS

    def __init__(self, directory: Path, evict_oldest: EvictOldest | None = None) -> None:
        self._directory = directory
        self._evict_oldest = evict_oldest

    async def candidates(self, sizes: Mapping[str, int]) -> list[ColdThing]:
        """All objects that are not being sent, the longest unused first."""
        return await asyncio.to_thread(self._found) if sizes else []

    async def reclaim(self, wanted: int, sizes: Mapping[str, int]) -> list[ColdThing]:
        """Removes objects until `wanted` bytes are free."""
        if self._evict_oldest is None:
            return await asyncio.to_thread(self._remove, wanted) if sizes else []
        gone: list[ColdThing] = []
        while wanted > 0 and (found := self._evict_oldest(REASON)) is not None:
            gone.append(ColdThing(self.kind, found.repo, f"the LFS object {found.oid}", found.size, 0.0))
            wanted -= found.size
            await asyncio.sleep(0)
        return gone

    def _remove(self, wanted: int) -> list[ColdThing]:
        gone = []
        for thing in enough(self._found(), wanted):
            oid = thing.what.rpartition(" ")[2]
            with contextlib.suppress(FileNotFoundError):
                (self._directory / thing.repo / oid[:2] / oid).unlink()
                gone.append(thing)
        return gone

    def _found(self) -> list[ColdThing]:
        return sorted(self._objects(), key=lambda thing: thing.used_at)

    def _objects(self) -> Iterator[ColdThing]:
        opened = open_files()
        for directory in self._directory.glob("*/*/??"):
            repo = f"{directory.parent.parent.name}/{directory.parent.name}"
            with contextlib.suppress(OSError), os.scandir(directory) as entries:
                for entry in entries:
                    status = entry.stat(follow_symlinks=False)
                    if _OID.fullmatch(entry.name) and (status.st_dev, status.st_ino) not in opened:
                        size = status.st_blocks * 512
                        used_at = max(status.st_atime, status.st_mtime)
                        yield ColdThing(self.kind, repo, f"the LFS object {entry.name}", size, used_at)
