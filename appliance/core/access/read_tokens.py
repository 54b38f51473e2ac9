"""Read tokens: issues them, looks them up at each request, and stores later when each was last used."""

from __future__ import annotations

import asyncio
from typing import Any

from appliance.core.access.privacy import Privacy
from appliance.core.access.token_uses import TokenUses
from appliance.core.models import Repo
from appliance.core.store.tokens import TokenStore

MOST_LOOKUPS = 4
"""The most concurrent lookups. Any guest can cause one, and pushes and refreshes need the same threads."""


def issue_token(store: TokenStore, privacy: Privacy, repo: Repo, ttl: float, note: str) -> dict[str, Any]:
    """Creates a read token for `repo` that is valid for `ttl` seconds; `private` is whether guests need one.

    A running `serve` need not be notified, because it looks tokens up in the database at each request.
    """
    return store.issue(repo, ttl, note) | {"private": privacy.is_private(repo)}


class ReadTokens:
    """Looks up the tokens in `store`."""

    def __init__(self, store: TokenStore) -> None:
        self._store = store
        self._uses = TokenUses("read tokens", store.used)
        self._slots = asyncio.Semaphore(MOST_LOOKUPS)

    async def repo_of(self, token: str) -> int | None:
        """Returns the id of the repository that a token grants now, or None. Raises StoreError.

        Lookups are never cached, so that a token revoked by any process grants nothing from then on.
        """
        async with self._slots:
            found = await asyncio.to_thread(self._store.find, token)
        if found is None:
            return None
        number, repo_id = found
        self._uses.note(number)
        return repo_id

    async def write(self) -> None:
        """Stores when tokens were last used. If that fails, logs it and keeps the times for the next call."""
        await self._uses.write()
