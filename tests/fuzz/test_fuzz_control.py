"""The control socket, in process: whatever bytes come, there is an answer or an end, and nothing is a defect."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from appliance.core.api.access import Access, Token
from appliance.core.api.application import make_application
from appliance.core.api.node_routes import NodeRoutes
from appliance.core.api.openapi import described
from appliance.core.daemon.api_socket import ApiSocket, api_handler
from appliance.core.errors import NotFound
from appliance.core.observability.event_stream import EventStream
from appliance.core.serving.net.seats import Seat
from tests.fuzz import grammar
from tests.fuzz.budget import LONGEST_TURN, Budget, Timed
from tests.fuzz.mutation import cut, mutations
from tests.fuzz.test_fuzz_http import Errors, errors

__all__ = ["errors"]

REQUESTS = Budget.of(1500)
TURNS = 200
STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) [^\r\n]*\r\n")
REPO: dict[str, Any] = {"name": "acme/widgets", "url": "https://h/acme/widgets", "state": "fresh"}


class StandIn:
    """Behind the routes: knows one repository and encodes the text that it gets, as SQLite does."""

    def __getattr__(self, name: str) -> Any:
        async def operation(*arguments: Any, **more: Any) -> Any:
            for each in (*arguments, *more.values()):
                if isinstance(each, str):
                    each.encode()
                    if each != REPO["name"]:
                        raise NotFound(f"no {each}", hint="see `repos`")
            return REPO

        return operation

    def repos(self) -> list[dict[str, Any]]:
        """All of them."""
        return [REPO]

    def repo(self, name: str) -> dict[str, Any]:
        """One."""
        if name != REPO["name"]:
            raise NotFound(f"no {name}", hint="see `repos`")
        return REPO

    async def add(self, arguments: dict[str, Any], tell: Any) -> tuple[dict[str, Any], bool]:
        """Encodes what it is given, and says so."""
        tell("adding")
        for value in arguments.values():
            str(value).encode()
        return REPO, True

    async def refresh(self, names: list[str]) -> list[dict[str, Any]]:
        """Encodes the names."""
        return [{"repo": name.encode().decode()} for name in names or ["acme/widgets"]]

    def guest_kit(self) -> str:
        """A script."""
        return "#!/bin/sh\n"


@dataclass
class Control:
    """The socket's server without its listener: one connection at a time, on its own loop."""

    loop: asyncio.AbstractEventLoop
    path: Path
    complaints: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.loop.set_exception_handler(lambda _, context: self.complaints.append(repr(context)))
        node: Any = StandIn()

        async def find(token: str) -> Token | None:
            return None

        operations = described(NodeRoutes(node).operations())
        application = make_application(operations, Access(find, EventStream().wake))
        self.server = ApiSocket(self.path, api_handler(application, is_operator=True))

    def said_to(self, parts: list[bytes]) -> tuple[bytes, float]:
        """What is answered to this, and the longest turn of the loop meanwhile."""
        return self.loop.run_until_complete(asyncio.wait_for(self._said_to(parts), 60))

    async def _said_to(self, parts: list[bytes]) -> tuple[bytes, float]:
        ours, theirs = socket.socketpair()
        for each in (ours, theirs):
            each.setblocking(False)
        work = Timed(self.server._acceptor._serve(Seat(ours, "unix", 0)))
        serving = asyncio.create_task(work)
        saying = asyncio.create_task(self._say(theirs, parts))
        answer = bytearray()
        with contextlib.suppress(ConnectionError):
            while data := await self.loop.sock_recv(theirs, 65536):
                answer += data
        saying.cancel()
        await asyncio.gather(saying, return_exceptions=True)
        theirs.close()
        await serving
        return bytes(answer), work.longest

    async def _say(self, sock: socket.socket, parts: list[bytes]) -> None:
        with contextlib.suppress(OSError):
            for part in parts:
                await self.loop.sock_sendall(sock, part)
            # The end of our side is taken for a hang-up. What was asked for is answered within so many turns, because
            # nothing here waits for anything but the loop.
            for _ in range(TURNS):
                await asyncio.sleep(0)
            sock.shutdown(socket.SHUT_WR)


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Control]:
    """One for all inputs."""
    loop = asyncio.new_event_loop()
    yield Control(loop, tmp_path_factory.mktemp("c") / "s")
    loop.close()


@pytest.mark.slow
def test_requests(control: Control, errors: Errors) -> None:
    """Answers of HTTP, or one line for an older file. No status of 500, no traceback, and no long turn of the loop."""

    @REQUESTS.settings
    @given(grammar.api_requests(), grammar.SEEDS)
    def run(said: bytes, seed: int) -> None:
        for data in mutations(said, seed, REQUESTS.variants):
            errors.found.clear()
            control.complaints.clear()
            for attempt in range(3):
                answer, longest = control.said_to(cut(data, seed))
                if longest <= LONGEST_TURN:
                    break
                assert attempt < 2, f"the loop stood still for {longest * 1000:.0f} ms"
            assert not answer or STATUS.match(answer) or answer.startswith(b'{"error": '), answer[:200]
            assert not re.search(rb"HTTP/1\.1 500 ", answer), answer
            assert not control.complaints, control.complaints
            assert not errors.found, errors.found

    run()
