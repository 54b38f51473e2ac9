"""The routes about known guests."""

from __future__ import annotations

from typing import Any

from appliance.core.api import problem, schemas
from appliance.core.api.declaration import Answer, Call, Header, Operation, Reply, Scope
from appliance.core.api.operations import NodeOperations
from appliance.core.api.paging import AFTER, LIMIT, paged_by_name
from appliance.core.errors import NotFound
from appliance.core.store.guests import LONGEST_PATH
from appliance.core.store.tokens import LONGEST

_GUEST_PATH = "/v1/guests/{guest}"
_LOCATION = {"Location": Header(schemas.TEXT, "The path of the guest.")}

_PATH = {**schemas.NAME, "maxLength": LONGEST_PATH}
_LAST = schemas.document("LastSeen", at=schemas.TIME, what=schemas.TEXT, repo=schemas.TEXT)
_GUEST = schemas.document(
    "Guest",
    name=schemas.TEXT, sessions=schemas.listed(schemas.TEXT), repos=schemas.listed(schemas.TEXT), only=schemas.SWITCH,
    unix=schemas.nullable(schemas.TEXT), address=schemas.nullable(schemas.TEXT),
    has_token=schemas.SWITCH, created_at=schemas.TIME, expires_at=schemas.nullable(schemas.TIME),
    last=schemas.nullable(_LAST), problem=schemas.nullable(schemas.TEXT),
)  # fmt: skip
_ADDED = schemas.extended(
    "AddedGuest", _GUEST, token=schemas.nullable(schemas.TEXT),
    shared={"type": "object", "additionalProperties": schemas.listed(schemas.TEXT)},
)  # fmt: skip


class KnownGuestRoutes:
    """Answers requests about the known guests of `node`."""

    def __init__(self, node: NodeOperations) -> None:
        self._node = node

    def operations(self) -> list[Operation]:
        """The routes, in the order of the documentation."""
        return [
            Operation(
                "GET", "/v1/guests", "list-guests", "Known guests, by name", Scope.READ, self._all,
                {200: Answer("A page of them, as `guests --json`.", schemas.page(_GUEST))}, (problem.INVALID,),
                query=(LIMIT, AFTER),
            ),
            Operation(
                "POST", "/v1/guests", "add-guest", "Make a guest known", Scope.OPERATE, self._add,
                {
                    200: Answer("The same request made it known before.", _ADDED, headers=_LOCATION),
                    201: Answer("The guest. `token` is shown only this once.", _ADDED, headers=_LOCATION),
                },
                (problem.INVALID, problem.NOT_FOUND, problem.CONFLICT, problem.TOO_LARGE_BODY, problem.FAILED),
                body=schemas.given(
                    ("name",), name=schemas.NAME, sessions=schemas.listed(schemas.NAME),
                    repos=schemas.listed(schemas.NAME), only=schemas.SWITCH, unix=_PATH, address=schemas.NAME,
                    token=schemas.SWITCH, ttl=schemas.duration(1, int(LONGEST)),
                ),
                details="It needs one way to come: its sockets (`unix`), its `address` or its `token`. `shared` has "
                "those of its sessions that other guests may write too, with their names. A request may be repeated, "
                "except one with `token`.",
                example={"name": "vm-7", "sessions": ["fix-dns"], "address": "172.16.0.7"},
            ),
            Operation(
                "GET", _GUEST_PATH, "get-guest", "One guest", Scope.READ, self._one,
                {200: Answer("The guest.", _GUEST)}, (problem.NOT_FOUND,),
            ),
            Operation(
                "DELETE", _GUEST_PATH, "remove-guest", "Forget a guest", Scope.OPERATE, self._remove,
                {200: Answer("The guest that was known.", _GUEST)}, (problem.NOT_FOUND, problem.FAILED),
            ),
        ]  # fmt: skip

    async def _all(self, call: Call) -> Any:
        return paged_by_name(await self._node.known_guests(), call)

    async def _add(self, call: Call) -> Any:
        added, is_new = await self._node.add_guest(call.body)
        return Reply(added, 201 if is_new else 200, headers={"Location": f"/v1/guests/{added['name']}"})

    async def _one(self, call: Call) -> Any:
        for guest in await self._node.known_guests():
            if guest["name"] == call.path["guest"]:
                return guest
        raise NotFound(f"there is no known guest {call.path['guest']!a:.100}", hint="GET /v1/guests lists them")

    async def _remove(self, call: Call) -> Any:
        return await self._node.remove_guest(call.path["guest"])
