"""When tokens were last used: noted at each request, and stored later, so that no request waits for a write."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping

from appliance.core.store.database import StoreError

log = logging.getLogger(__name__)


class TokenUses:
    """Notes uses, which `store` stores by the tokens' numbers in Unix seconds. `called` names the tokens in the log."""

    def __init__(self, called: str, store: Callable[[Mapping[int, float]], None]) -> None:
        self._called = called
        self._store = store
        self._used: dict[int, float] = {}

    def note(self, token_id: int) -> None:
        """A token is used now."""
        self._used[token_id] = time.time()

    async def write(self) -> None:
        """Stores when tokens were last used. If that fails, logs it and keeps the times for the next call."""
        if not self._used:
            return
        times, self._used = self._used, {}
        try:
            await asyncio.to_thread(self._store, times)
        except StoreError as error:
            log.warning("the last use of %d %s cannot be recorded yet: %s", len(times), self._called, error.message)
            self._used = times | self._used
