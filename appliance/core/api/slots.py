"""Bounds how many requests read mirrors at once, because each of them runs git."""

from __future__ import annotations

import asyncio
from collections import Counter

from appliance.core.api.problem import BUSY, Problem

MOST = 16
"""Requests at once, and so git processes: one request runs one after the other. A git takes some 10 MB, or twice the
size of a blob that it diffs, so this is a bound on memory as much as on load."""
MOST_EACH = 8
"""Those of one caller. The rest is for the others: a reader that takes a stream slowly keeps its slot for a while."""
FOR_OPERATOR = 4
"""Those that no token gets: operators look at the node also while tokens keep it busy."""
OPERATOR = ""
"""The caller on the operator's socket."""
PATIENCE = 10.0
"""Seconds that a request waits for a slot before it is told to come back."""


class Slots:
    """At most `most` slots, of which one caller has at most `most_each`, and all but OPERATOR leave `for_operator`.

    Whoever has waited longest is next. A caller is whatever stands for one, such as its token.
    """

    def __init__(
        self,
        most: int = MOST,
        most_each: int = MOST_EACH,
        patience: float = PATIENCE,
        for_operator: int = FOR_OPERATOR,
    ) -> None:
        self._most = most
        self._most_of_tokens = most - for_operator
        self._most_each = most_each
        self._patience = patience
        self._held: Counter[str] = Counter()
        self._waiting: dict[asyncio.Future[None], str] = {}

    async def take(self, caller: str) -> Slot:
        """Waits for a slot; release it. Raises Problem when there is none in time."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[turn] = caller
        self._give()
        try:
            async with asyncio.timeout(self._patience):
                await self._given(turn, caller)
        except TimeoutError:
            words = f"other requests have been reading mirrors for {self._patience:g} seconds"
            hint = "send fewer at once, and try again"
            raise Problem(BUSY, words, hint=hint, headers={"Retry-After": "2"}) from None
        finally:
            self._waiting.pop(turn, None)
        return Slot(self, caller)

    async def _given(self, turn: asyncio.Future[None], caller: str) -> None:
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                # It was given a slot at the same moment.
                self._take_back(caller)
            raise

    def _give(self) -> None:
        for turn, caller in list(self._waiting.items()):
            if self._held.total() >= self._most:
                return
            if self._may_have_one(caller) and not turn.done():
                self._held[caller] += 1
                del self._waiting[turn]
                turn.set_result(None)

    def _may_have_one(self, caller: str) -> bool:
        of_tokens = self._held.total() - self._held[OPERATOR]
        return self._held[caller] < self._most_each and (caller == OPERATOR or of_tokens < self._most_of_tokens)

    def _take_back(self, caller: str) -> None:
        self._held[caller] -= 1
        if not self._held[caller]:
            del self._held[caller]
        self._give()


class Slot:
    """One slot that is held."""

    def __init__(self, slots: Slots, caller: str) -> None:
        self._slots = slots
        self._caller = caller
        self._is_held = True

    def release(self) -> None:
        """Gives it to whoever is next. Does nothing the second time."""
        if self._is_held:
            self._is_held = False
            self._slots._take_back(self._caller)
