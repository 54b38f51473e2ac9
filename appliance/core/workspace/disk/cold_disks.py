"""Disks that nobody has leased as something that goes when the disk is short."""

from __future__ import annotations

from collections.abc import Mapping

from appliance.core.process.cold import ColdThing
from appliance.core.workspace.disk.collector import KIND, DiskCollector


class ColdDisks:
    """The disks that `collector` removes. They are built again once somebody asks for them."""

    kind = KIND

    def __init__(self, collector: DiskCollector) -> None:
        self._collector = collector

    async def candidates(self, sizes: Mapping[str, int]) -> list[ColdThing]:
        """Those of old tips first, then those of present ones, the longest unused first."""
        return await self._collector.unleased()

    async def reclaim(self, wanted: int, sizes: Mapping[str, int]) -> list[ColdThing]:
        """Removes disks until `wanted` bytes are free."""
        return await self._collector.reclaim(wanted) if sizes else []
