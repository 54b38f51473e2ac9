"""How long a response may hold a slot: as long as its client takes it at a least pace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, MutableMapping
from typing import Any

import pytest

from appliance.core.api import streams
from appliance.core.api.access import Access
from appliance.core.api.declaration import Scope
from appliance.core.api.slots import FOR_OPERATOR, MOST, MOST_EACH
from appliance.core.api.streams import GuardedStream, Pieces
from tests.api.server import ApiServer, FakeToken
from tests.api.wire import Wire, request
from tests.support.gitutil import wait_until


@pytest.mark.slow
def test_readers_that_take_a_little_now_and_then_lose_their_slots(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two tokens hold all that tokens may. The operator still gets one, and may be slow."""
    monkeypatch.setattr(streams, "STREAMED", 1.5)
    # Sockets take some megabytes that nobody has read.
    monkeypatch.setattr(streams, "LEAST_PACE", 2**24)
    server.tokens |= {"a": FakeToken("read"), "b": FakeToken("read")}
    count = MOST - FOR_OPERATOR
    wires = [
        Wire(server.admin).say(request("GET", "/v1/pieces", Authorization=f"Bearer {'ab'[number // MOST_EACH]}"))
        for number in range(count)
    ]
    operator = Wire(server.path).say(request("GET", "/v1/pieces"))
    try:
        assert all(wire.head()[0] == 200 for wire in (*wires, operator))
        assert operator.piece()

        def all_ended() -> bool:
            for wire in wires:
                wire.socket.recv(100)
            return server.seen.count("ended") == count

        wait_until(all_ended, timeout=20, message="all slots are free again")
        assert operator.piece()
        assert server.seen.count("began") == count + 1
    finally:
        for wire in (*wires, operator):
            wire.close()


@pytest.mark.slow
@pytest.mark.parametrize("is_slow", [False, True])
def test_only_the_time_that_the_client_takes_counts(is_slow: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """git may take its time. What was taken at the least pace is paid for."""
    monkeypatch.setattr(streams, "STREAMED", 2.0)
    monkeypatch.setattr(streams, "LEAST_PACE", 100)
    sent: list[bytes] = []
    ended: list[bool] = []

    async def pieces() -> AsyncGenerator[bytes, None]:
        try:
            await asyncio.sleep(0.5)
            for _ in range(4):
                yield b"x" * 10
        finally:
            ended.append(True)

    async def send(message: MutableMapping[str, Any]) -> None:
        if message.get("body"):
            await asyncio.sleep(0.8 if is_slow else 0.01)
            sent.append(message["body"])

    async def receive() -> MutableMapping[str, Any]:
        return {}

    async def no_token(token: str) -> None:
        return None

    async def test() -> None:
        lasting = await Access(no_token, lambda: None).admit(Scope.NOTHING, "", is_operator=False)
        response = GuardedStream(Pieces(b"", pieces(), lambda: None), 200, {}, "text/x", lasting, is_paced=True)
        await response({"type": "http", "asgi": {"spec_version": "2.4"}}, receive, send)

    asyncio.run(test())
    assert ended == [True]
    assert (len(sent) < 4) == is_slow
