"""API tokens: looks them up at each request, and stores later when each was last used."""

from __future__ import annotations

import asyncio

from appliance.core.access.token_uses import TokenUses
from appliance.core.store.api_tokens import ApiToken, ApiTokenStore

MOST_LOOKUPS = 4
"""Concurrent lookups. Anybody who reaches the admin port can cause one, and pushes need the same threads."""


class ApiTokens:
    """Looks up the tokens in `store`."""

    def __init__(self, store: ApiTokenStore) -> None:
        self._store = store
        self._uses = TokenUses("API tokens", store.used)
        self._slots = asyncio.Semaphore(MOST_LOOKUPS)

    async def holder_of(self, token: str) -> ApiToken | None:
        """Returns the token if it is valid now, else None. Raises StoreError.

        Lookups are never cached, so that a token revoked by any process allows nothing from then on.
        """
        async with self._slots:
            found = await asyncio.to_thread(self._store.find, token)
        if found is not None:
            self._uses.note(found.id)
        return found

    async def write(self) -> None:
        """Stores when tokens were last used; call it now and then, and at the end."""
        await self._uses.write()
