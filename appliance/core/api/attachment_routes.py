"""The route that gives what agents attached to their turns."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import BinaryIO

from appliance.core.api import problem, schemas
from appliance.core.api.declaration import Answer, Call, Header, Operation, Reply, Scope
from appliance.core.api.operations import NodeOperations
from appliance.core.api.spool import spooled
from appliance.core.errors import NotFound
from appliance.core.recording.attached import find_attachment
from appliance.core.store.stores import Stores
from appliance.core.store.turn_details import AttachmentRow

ANY_TYPE = "application/octet-stream"
MOST_DIGITS = 9
_ATTACHMENT = "/v1/repos/{owner}/{repo}/sessions/{session}/turns/{turn}/attachments/{attachment}"
_HEADERS = {
    "Content-Disposition": Header(schemas.TEXT, "Its name."),
    "ETag": Header(schemas.TEXT, "The SHA-256 of its bytes, in hex, quoted."),
    "X-Content-Type-Options": Header(schemas.TEXT, "`nosniff`: an agent chose what is in it."),
}


class AttachmentRoutes:
    """Answers requests for attachments, which `stores` knows, with the files of `node`."""

    def __init__(self, node: NodeOperations, stores: Stores) -> None:
        self._node = node
        self._stores = stores

    def operations(self) -> list[Operation]:
        """The routes, in the order of the documentation."""
        return [
            Operation(
                "GET", _ATTACHMENT, "get-attachment", "A file that was attached to a turn", Scope.READ,
                self._attachment,
                {200: Answer("Its bytes.", media_type=ANY_TYPE, headers=_HEADERS)},
                (problem.INVALID, problem.NOT_FOUND, problem.FAILED),
                reads_mirror=True,
                details="Turns count from 1. The file is read whole before the first byte is sent, and one that is not "
                "what was attached is refused.",
            )
        ]  # fmt: skip

    async def _attachment(self, call: Call) -> Reply:
        number, name = call.path["turn"], call.path["attachment"]
        if not number.isascii() or not number.isdigit() or len(number) > MOST_DIGITS or int(number) < 1:
            raise NotFound("a turn is a number from 1 on", hint="GET the session to see its turns")

        def find() -> AttachmentRow:
            session = call.path["session"]
            if self._stores.sessions.get(call.repo, session) is None:
                raise NotFound(f"{call.repo} has no session {ascii(session)[:200]}", hint="GET /v1/sessions lists them")
            turns = self._stores.sessions.turns(call.repo, session)
            return find_attachment(self._stores.details, session, turns, name, int(number))

        row = await asyncio.to_thread(find)
        await self._node.bring_attachment(row)
        file = await asyncio.to_thread(self._node.open_attachment, row)
        headers = {
            "Content-Disposition": f'attachment; filename="{name}"',
            "Content-Length": str(row.size),
            "ETag": f'"{row.sha256}"',
            "X-Content-Type-Options": "nosniff",
        }
        return Reply(media_type=ANY_TYPE, headers=headers, stream=_pieces(file))


async def _pieces(file: BinaryIO) -> AsyncGenerator[bytes, None]:
    with file:
        async for piece in spooled(file):
            yield piece
