"""LFS objects as something that goes when the disk is short. Each can be fetched from the upstream again."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from appliance.core.lfs.stock import ColdObject, LfsStock
from appliance.core.process.cold import ColdThing

REASON = "the state directory or its disk has no room ([storage] budget)"
AT_ONCE = 32
"""Objects that are removed before others get their turn on the event loop."""


class ColdObjects:
    """The objects of a store that are not being sent, and were not used just now."""

    kind = "lfs"

    def __init__(self, stock: LfsStock) -> None:
        self._stock = stock

    async def candidates(self, sizes: Mapping[str, int]) -> list[ColdThing]:
        """Objects, the longest unused first."""
        return [self._thing(cold) for cold in self._stock.cold()]

    async def reclaim(self, wanted: int, sizes: Mapping[str, int]) -> list[ColdThing]:
        """Removes objects until `wanted` bytes are free."""
        gone: list[ColdThing] = []
        while wanted > 0 and (cold := self._stock.evict_oldest(REASON)) is not None:
            gone.append(self._thing(cold))
            wanted -= cold.size
            if len(gone) % AT_ONCE == 0:
                await asyncio.sleep(0)
        return gone

    def _thing(self, cold: ColdObject) -> ColdThing:
        return ColdThing(self.kind, cold.repo, f"the LFS object {cold.oid}", cold.size, cold.used_at)
