"""What the ref commands of a push take of the memory that all requests share."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from appliance.core.models import NOTHING_WITHDRAWN, Caller, Confirmation, PushDecision, RefCommand, Repo
from appliance.core.models import Guest as Known
from appliance.core.serving.net import reading
from appliance.core.serving.net.reading import SMALL, Budget
from appliance.core.serving.net.seats import Peer
from appliance.core.serving.net.streams import SocketStream
from appliance.core.serving.push.relay import PushRelay
from tests.support.pkt import CAPABILITIES, FLUSH, ZERO, pkt

REPO = Repo(1, "acme/widgets", "https://h/acme/widgets", None, "cli", None, True, 0.0)
OID = "1" * 40
COMMAND = pkt(f"{ZERO} {OID} refs/agents/s\0 {CAPABILITIES}")
SHALLOW = pkt(f"shallow {OID}") * 2000
"""106 KB, all of which have to be passed on, and so are held."""


class Authority:
    """Refuses every push, and notes why and what memory is taken by then."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.fault: str | None = None
        self.used = -1

    def open(self) -> str:
        """A push's id."""
        return "push"

    def environment(self, push: str, guest: Known | None) -> dict[str, str]:
        """Nothing."""
        return {}

    async def rule(
        self,
        push: str,
        repo: Repo,
        caller: Caller,
        commands: Sequence[RefCommand],
        total: int,
        count_objects: Callable[[], Awaitable[int]],
        fault: str | None = None,
        options: Sequence[bytes] = (),
    ) -> PushDecision:
        """No."""
        self.fault, self.used = fault, self._budget.used
        refusals = {command.ref: fault or "no" for command in commands}
        return PushDecision(push, repo, caller.client, tuple(commands), refusals, (), ())

    waits = False

    async def confirm(self, decision: PushDecision, report: Mapping[str, str | None], size: int) -> Confirmation:
        """Never reached."""
        raise AssertionError

    async def conclude(
        self,
        decision: PushDecision,
        report: Mapping[str, str | None],
        size: int,
        confirmation: Confirmation = NOTHING_WITHDRAWN,
    ) -> None:
        """Never reached."""
        raise AssertionError


class Guest:
    """Sends `pieces`, and notes what memory is taken before each of them."""

    def __init__(self, budget: Budget, *pieces: bytes) -> None:
        self._budget = budget
        self._pieces = list(pieces)
        self.used: list[int] = []
        self.answer = b""

    async def receive(self) -> bytes:
        """The next piece."""
        self.used.append(self._budget.used)
        return self._pieces.pop(0) if self._pieces else b""

    async def send(self, data: bytes) -> None:
        """Takes the answer."""
        self.answer += data

    async def end(self) -> None:
        """Nothing more comes."""

    def abort(self) -> None:
        """Never needed."""


@asynccontextmanager
async def no_lock(name: str) -> AsyncIterator[None]:
    """A mirror that nobody repacks."""
    yield


async def push(budget: Budget, guest: Guest) -> Authority:
    """One push over HTTP, to its end."""
    authority, (ours, theirs) = Authority(budget), socket.socketpair()
    theirs.close()
    ours.setblocking(False)
    with ours:
        relay = PushRelay(
            authority, no_lock, "push", REPO, Path("/"), Caller("a", "http"), guest, cast(Any, None),
            SocketStream(ours, None), budget.share(Peer("a")), stateless=True,
        )  # fmt: skip
        await relay.run(10)
    return authority


def test_ref_commands_count_while_they_come_in() -> None:
    """And no longer: what is ruled on is not ended for others' sake."""
    budget = Budget()
    guest = Guest(budget, COMMAND, SHALLOW, FLUSH)
    authority = asyncio.run(push(budget, guest))
    assert guest.used[:3] == [0, 0, len(COMMAND) + len(SHALLOW) - SMALL]
    assert authority.used == budget.used == 0


def test_a_push_that_finds_no_memory_is_refused_and_ruled_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guest is told to try again, and the log has the attempt."""
    monkeypatch.setattr(reading, "WAIT", 0.05)
    budget = Budget()
    guest = Guest(budget, COMMAND, SHALLOW, FLUSH)

    async def script() -> Authority:
        with budget.share(Peer("b")) as other:
            await other.grow(Budget.MOST + SMALL)
            return await push(budget, guest)

    authority = asyncio.run(script())
    assert authority.fault == "too many large requests are being read at once; try again"
    assert b"ng refs/agents/s too many large requests" in guest.answer
    assert budget.used == 0
