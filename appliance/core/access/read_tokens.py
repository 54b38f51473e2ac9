"""Read tokens: issuing one, and looking them up at each request, their last use written behind."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from appliance.core.access.privacy import Privacy
from appliance.core.models import Repo
from appliance.core.store.database import StoreError
from appliance.core.store.tokens import TokenStore

log = logging.getLogger(__name__)

MOST_LOOKUPS = 4
"""Lookups at once: any guest can ask for one, and the threads are needed for pushes and refreshes too."""


def issue_token(store: TokenStore, privacy: Privacy, repo: Repo, ttl: float, note: str) -> dict[str, Any]:
    """Makes a read token of `repo`, good for `ttl` seconds; `private` says whether its guests need one.

    A running `serve` need not be told: it looks tokens up in the database at each request.
    """
    return store.issue(repo, ttl, note) | {"private": privacy.is_private(repo)}


class ReadTokens:
    """The tokens in `store`."""

    def __init__(self, store: TokenStore) -> None:
        self._store = store
        self._used: dict[int, float] = {}
        self._places = asyncio.Semaphore(MOST_LOOKUPS)

    async def repo_of(self, token: str) -> int | None:
        """The id of the repository that a token is good for at this moment, or None. Raises StoreError.

        Never from memory: one that was revoked, by whatever process, lets nobody in from then on.
        """
        async with self._places:
            found = await asyncio.to_thread(self._store.find, token)
        if found is None:
            return None
        number, repo_id = found
        self._used[number] = time.time()
        return repo_id

    async def write(self) -> None:
        """Writes when tokens were last used; what cannot be written waits."""
        if not self._used:
            return
        times, self._used = self._used, {}
        try:
            await asyncio.to_thread(self._store.used, times)
        except StoreError as error:
            log.warning("the last use of %d read tokens cannot be recorded yet: %s", len(times), error.message)
            self._used = times | self._used
