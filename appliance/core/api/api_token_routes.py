"""The routes about API tokens, for the operator's socket alone: a token that leaked must not make others."""

from __future__ import annotations

import asyncio
from typing import Any

from appliance.core.api import problem, schemas
from appliance.core.api.declaration import Answer, Call, Header, Operation, Reply, Scope
from appliance.core.api.paging import AFTER, LIMIT, limit_of, paged
from appliance.core.store.api_tokens import TokenScope
from appliance.core.store.stores import Stores
from appliance.core.store.tokens import LONGEST

_TOKEN = schemas.document(
    "ApiToken",
    id=schemas.PAST_ID, name=schemas.TEXT, scope=schemas.one_of(*TokenScope),
    state=schemas.one_of("valid", "expired", "revoked"),
    created_at=schemas.nullable(schemas.TIME), expires_at=schemas.nullable(schemas.TIME),
    last_used_at=schemas.nullable(schemas.TIME), revoked_at=schemas.nullable(schemas.TIME),
)  # fmt: skip
_ISSUED = schemas.extended("IssuedApiToken", _TOKEN, token=schemas.TEXT)
_LOCATION = {"Location": Header(schemas.TEXT, "The path of the token.")}


class ApiTokenRoutes:
    """Answers from `stores`."""

    def __init__(self, stores: Stores) -> None:
        self._stores = stores

    def operations(self) -> list[Operation]:
        """The routes, in the order of the documentation."""
        return [
            Operation(
                "GET", "/v1/api-tokens", "list-api-tokens", "API tokens, newest first", Scope.SOCKET, self._all,
                {200: Answer("A page of them, as `api-token list --json`.", schemas.page(_TOKEN))}, (problem.INVALID,),
                query=(LIMIT, AFTER),
            ),
            Operation(
                "POST", "/v1/api-tokens", "issue-api-token", "Issue an API token", Scope.SOCKET, self._issue,
                {201: Answer("The token; it is shown only this once.", _ISSUED, headers=_LOCATION)},
                (problem.INVALID, problem.TOO_LARGE_BODY),
                body=schemas.given(
                    ("scope",), scope=schemas.one_of(*TokenScope), name={**schemas.NAME, "minLength": 0},
                    ttl=schemas.duration(1, LONGEST),
                ),
                details="Without `ttl`, it is valid until it is revoked.",
                example={"scope": "read", "name": "dashboard"},
            ),
            Operation(
                "DELETE", "/v1/api-tokens/{api_token}", "revoke-api-token", "Revoke an API token at once", Scope.SOCKET,
                self._revoke, {200: Answer("The token as it is now.", _TOKEN)}, (problem.INVALID, problem.NOT_FOUND),
            ),
        ]  # fmt: skip

    async def _all(self, call: Call) -> Any:
        page, after = self._stores.api_tokens.page, call.query.get("after")
        return paged(*await asyncio.to_thread(page, after=after, limit=limit_of(call)))

    async def _issue(self, call: Call) -> Any:
        scope, ttl, name = TokenScope(call.body["scope"]), call.body.get("ttl"), str(call.body.get("name") or "")
        issued = await asyncio.to_thread(
            self._stores.api_tokens.issue, scope, None if ttl is None else float(ttl), name
        )
        return Reply(issued, 201, headers={"Location": f"/v1/api-tokens/{issued['id']}"})

    async def _revoke(self, call: Call) -> Any:
        number = number_of_token(call.path["api_token"], "/v1/api-tokens")
        return await asyncio.to_thread(self._stores.api_tokens.revoke, number)


def number_of_token(number: str, listed: str) -> int:
    """The number in a path. Raises Problem for what is none; `listed` is the route that lists them."""
    if not (number.isascii() and number.isdigit() and len(number) < 18):
        words = f"{ascii(number)[:100]} is no number of a token"
        raise problem.Problem(problem.INVALID, words, hint=f"GET {listed} lists them")
    return int(number)
