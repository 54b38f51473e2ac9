"""Who may call what: the operator's socket everything, the admin port what an API token's scope allows."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from appliance.core.api.declaration import Scope
from appliance.core.api.problem import FORBIDDEN, UNAUTHORIZED, Problem


class Token(Protocol):
    """A valid API token."""

    @property
    def scope(self) -> str:
        """`read` or `operate`."""
        ...


FindToken = Callable[[str], Awaitable[Token | None]]
"""Returns the API token if it is valid now, or None."""


class Access:
    """Decides by the token of each request, looked up anew, so that a revoked one stops at once."""

    def __init__(self, find: FindToken) -> None:
        self._find = find

    async def admit(self, scope: Scope, authorization: str, is_operator: bool) -> Callable[[], Awaitable[bool]]:
        """Returns a function that says whether the caller still may, for responses that last. Raises Problem."""
        if is_operator or scope is Scope.NOTHING:
            return _always
        kind, _, value = authorization.partition(" ")
        token = value.strip() if kind.lower() == "bearer" else ""
        found = await self._find(token) if token else None
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

        async def may_go_on() -> bool:
            return await self._find(token) is not None

        return may_go_on


async def _always() -> bool:
    return True
