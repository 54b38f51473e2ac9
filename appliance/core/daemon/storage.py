"""What fills the disk of a running `serve`, and what goes next, for `status` and `storage`."""

from __future__ import annotations

import asyncio
import math
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from appliance.core.daemon.state import ServeState
from appliance.core.maintenance.budget import DiskBudget, cold_document
from appliance.core.maintenance.usage import ANSWERS, Usage
from appliance.core.node.storage import MOST_NEXT, storage_document
from appliance.core.serving.fetch.response_cache import ResponseCache
from appliance.core.store.database import StoreError
from appliance.core.store.sessions import SessionStore

NEXT_IN_FULL = 100
"""The most entries that `storage` has of what goes next."""
NEXT_HOLDS = 10.0
"""Seconds at most for which what goes next is not looked for again."""
NEXT_SHARE = 20
"""How many times as long as it took to find it."""


@dataclass
class StorageReport:
    """Reads the `budget`, the `cache` and the `sessions` at each call."""

    state: ServeState
    budget: DiskBudget
    cache: ResponseCache
    sessions: SessionStore
    _next: list[dict[str, Any]] = field(default_factory=list)
    _next_until: float = -math.inf

    async def short(self) -> dict[str, Any]:
        """`storage` of `status --json`: the largest repositories, and what goes first."""
        document = await self._document()
        document["next"] = document["next"][:MOST_NEXT]
        return document

    async def full(self) -> dict[str, Any]:
        """The document of `storage --json`: every repository, more of what goes next, and what went last."""
        return {**await self._document(most_repos=sys.maxsize), "removed_last": self.budget.history()}

    async def _document(self, **options: Any) -> dict[str, Any]:
        usage = self._with_names(await self.budget.fresh())
        packs = await asyncio.to_thread(self._packs)
        gone = {"bytes": self.budget.evicted_bytes.total(), "count": self.budget.evictions.total()}
        return await asyncio.to_thread(
            storage_document, usage, packs, self.state.layout.state, self.state.config.storage.budget,
            following=await self._following(), removed=gone, **options,
        )  # fmt: skip

    async def _following(self) -> list[dict[str, Any]]:
        start = time.monotonic()
        if start > self._next_until:
            self._next = [cold_document(thing) for thing in await self.budget.next(NEXT_IN_FULL)]
            now = time.monotonic()
            self._next_until = now + min(NEXT_HOLDS, NEXT_SHARE * (now - start))
        return self._next

    def _with_names(self, usage: Usage) -> Usage:
        """The same with cached responses by repository: their files do not say whose they are."""
        sizes, names = Counter[str](), {repo.id: repo.name for repo in self.state.repos}
        for repo, taken in self.cache.kept.by_repo().items():
            sizes[names.get(repo, "")] += taken
        named: Mapping[str, int] = {name: size for name, size in sizes.items() if name}
        # The kept ones are known exactly, so what was cached since the measurement counts already.
        return Usage(usage.at, {**usage.by, ANSWERS: {**named, "": max(0, self.cache.bytes - sum(named.values()))}})

    def _packs(self) -> Mapping[str, int]:
        try:
            return self.sessions.packs_by_repo()
        except StoreError:
            # A serve whose database is lost still has a status.
            return {}
