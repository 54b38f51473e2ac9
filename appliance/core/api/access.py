"""Who may call what: the operator's socket everything, the admin port what an API token's scope allows."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Protocol

from appliance.core.api.declaration import IsAllowed, Lasting, Scope
from appliance.core.api.problem import FORBIDDEN, UNAUTHORIZED, UNAVAILABLE, Problem
from appliance.core.errors import GitmirrorError
from appliance.core.store.database import StoreError

log = logging.getLogger(__name__)


class Token(Protocol):
    """A valid API token."""

    @property
    def scope(self) -> str:
        """`read` or `operate`."""
        ...


FindToken = Callable[[str], Awaitable[Token | None]]
"""Returns the API token if it is valid now, or None."""


LOOKED_UP_EVERY = 0.7
"""Seconds between two lookups of a token on which an open response depends: a revoked one works for a second."""
TO_END = 0.1
"""Seconds that a response has to end by itself, as one does that waits for events, before it is cut."""


def token_in(authorization: str) -> str:
    """The token in an `Authorization` header, or an empty string. However it is written, a token is the same."""
    kind, _, value = authorization.partition(" ")
    return value.strip() if kind.lower() == "bearer" else ""


def _nothing() -> None:
    pass


class Access:
    """Decides by the token of each request, looked up anew, so that a revoked one stops at once.

    `wake` makes open responses look at whether they are still allowed.
    """

    def __init__(self, find: FindToken, wake: Callable[[], None]) -> None:
        self._find = find
        self._wake = wake
        self._open: dict[str, _OpenToken] = {}

    async def admit(self, scope: Scope, authorization: str, is_operator: bool) -> Lasting:
        """Raises Problem unless the caller may do this. Returns what a response that lasts needs."""
        if is_operator or scope is Scope.NOTHING:
            return _always
        token = token_in(authorization)
        try:
            found = await self._find(token) if token else None
        except StoreError as error:
            # It names paths of the node, and nobody knows who this is.
            log.warning("an API token cannot be looked up: %s", error.message)
            hint = "try again; `status` on the node says what is wrong"
            raise Problem(UNAVAILABLE, "API tokens cannot be looked up now", hint=hint) from None
        if found is None:
            hint = "send Authorization: Bearer TOKEN; `api-token issue --scope read` makes one"
            challenge = {"WWW-Authenticate": 'Bearer realm="gitmirror"'}
            words = "the API token is not valid" if token else "an API token is required"
            raise Problem(UNAUTHORIZED, words, hint=hint, headers=challenge)
        if scope is Scope.SOCKET:
            hint = "call it on the control socket: `gitmirror.pyz api`"
            raise Problem(FORBIDDEN, "only an operator of this node may do this", hint=hint)
        if scope is Scope.OPERATE and found.scope != Scope.OPERATE:
            hint = "`api-token issue --scope operate` makes one that may"
            raise Problem(FORBIDDEN, f"a token of scope {found.scope} may not do this", hint=hint)
        return partial(self._lasting, token)

    @asynccontextmanager
    async def _lasting(self, token: str, cut: Callable[[], None] = _nothing) -> AsyncIterator[IsAllowed]:
        """All open responses of one token share the lookups: a thousand streams need one a second."""
        opened = self._open.get(token)
        if opened is None:
            opened = self._open[token] = _OpenToken()
            opened.watching = asyncio.create_task(self._watch(token, opened), name="token of an open response")
        response = object()
        opened.responses[response] = cut
        if opened.is_cut:
            cut()
        try:
            yield opened.is_valid
        finally:
            del opened.responses[response]
            if not opened.responses:
                del self._open[token]
                opened.watching.cancel()

    async def _watch(self, token: str, opened: _OpenToken) -> None:
        while opened.valid:
            await asyncio.sleep(LOOKED_UP_EVERY)
            try:
                opened.valid = await self._find(token) is not None
            except GitmirrorError as error:
                # What cannot be looked up now was valid a moment ago.
                log.warning("the token of an open response cannot be looked up: %s", error.message)
        self._wake()
        await asyncio.sleep(TO_END)
        opened.is_cut = True
        for cut in opened.responses.values():
            cut()


class _OpenToken:
    """A token on which open responses depend."""

    watching: asyncio.Task[None]

    def __init__(self) -> None:
        self.valid = True
        self.is_cut = False
        self.responses: dict[object, Callable[[], None]] = {}
        """What cuts each response."""

    def is_valid(self) -> bool:
        return self.valid


@asynccontextmanager
async def _always(cut: Callable[[], None] = _nothing) -> AsyncIterator[IsAllowed]:
    yield lambda: True
