"""Cached responses as something that goes when the disk is short. They are made again for the next guest that asks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping

from appliance.core.models import Repo
from appliance.core.process.cold import ColdThing, is_open, open_files
from appliance.core.serving.fetch.kept_responses import UnusedResponse
from appliance.core.serving.fetch.response_cache import ResponseCache

AT_ONCE = 32
"""Files that are removed before others get their turn on the event loop."""


class ColdResponses:
    """The responses of a cache that are not being sent. `repos` names the repositories that their ids are of."""

    kind = "answers"

    def __init__(self, cache: ResponseCache, repos: Callable[[], Iterable[Repo]]) -> None:
        self._cache = cache
        self._repos = repos

    async def candidates(self, sizes: Mapping[str, int]) -> list[ColdThing]:
        """Responses, the longest unused first; those that were made before anybody asked are the last."""
        return [thing for thing, _ in await self._found()]

    async def reclaim(self, wanted: int, sizes: Mapping[str, int]) -> list[ColdThing]:
        """Drops responses until `wanted` bytes are free."""
        gone: list[ColdThing] = []
        for thing, key in await self._found():
            if wanted <= 0:
                break
            if self._cache.kept.drop(key):
                gone.append(thing)
                wanted -= thing.bytes
            if len(gone) % AT_ONCE == 0:
                await asyncio.sleep(0)
        return gone

    async def _found(self) -> list[tuple[ColdThing, str]]:
        """What can go, each with its key."""
        names, responses = {repo.id: repo.name for repo in self._repos()}, self._cache.kept.by_use()
        # A look at each file, of which there may be twenty thousand.
        return await asyncio.to_thread(self._that_are_closed, responses, names)

    def _that_are_closed(
        self, responses: Iterable[UnusedResponse], names: Mapping[int, str]
    ) -> list[tuple[ColdThing, str]]:
        opened = open_files()
        return [
            (ColdThing(self.kind, names.get(each.repo, ""), "a cached response", each.taken, each.used_at), each.key)
            for each in responses
            if not is_open(each.path, opened)
        ]
