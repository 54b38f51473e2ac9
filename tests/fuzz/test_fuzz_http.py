"""The guests' HTTP port, in process: its framing, headers and routes on a real socket, with stand-ins for git."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.core.access.catalog import Catalog
from appliance.core.access.gate import AccessGate
from appliance.core.access.known_guests import KnownGuests
from appliance.core.models import Repo
from appliance.core.serving.fetch.request_memo import RequestMemo
from appliance.core.serving.net.acceptor import Acceptor, Busy, Limits
from appliance.core.serving.net.admission import Admission
from appliance.core.serving.net.http import Exchange, Handler, HttpPort
from appliance.core.serving.net.http_files import send_file
from appliance.core.serving.net.http_pages import require_read
from appliance.core.serving.net.reading import Budget as MemoryBudget
from appliance.core.serving.net.seats import Seat, Seats
from appliance.core.serving.ports.smart_http import SmartHttp
from appliance.core.serving.wire.v2 import V2Request
from tests.fuzz import grammar
from tests.fuzz.budget import LONGEST_TURN, Budget, Timed
from tests.fuzz.mutation import cut, mutations

LIMITS = Limits(max_clients=8, queue_timeout=20, request_timeout=20, idle_timeout=20, total_timeout=60)
TIP = b"c0ffee" * 6 + b"c0ff"
HTTP = Budget.of(700)
STATUS_LINE = re.compile(rb"HTTP/1\.1 (\d{3}) [ -~]*\r\n")


@dataclass
class StandIns:
    """Behind SmartHttp: what would run git reads the request and answers a word."""

    file: Path
    memo: RequestMemo = field(default_factory=RequestMemo)
    budget: MemoryBudget = field(default_factory=MemoryBudget)

    async def grants(self, token: str) -> int | None:
        """No token grants anything."""
        return None

    # The engine

    async def advertise(self, repo: Repo, exchange: Exchange | None = None) -> bytes:
        """Of git, and of receive-pack."""
        return b"000eversion 2\n0000"

    async def advertise_v0(self, repo: Repo, version: int, sink: Any) -> None:
        """Refs."""
        await sink.send(b"0000")

    async def answer(self, repo: Repo, request: V2Request, sink: Any, caller: Any, stream: Any) -> None:
        """A word, or nothing."""
        if request.arguments:
            await sink.send(request.encode()[:100])

    async def answer_v0(self, repo: Repo, body: Any, version: int, sink: Any, caller: Any, stream: Any) -> None:
        """A word."""
        await sink.send(b"NAK")

    # Pushes

    async def receive(self, repo: Repo, exchange: Exchange, give_back: Callable[[], None]) -> None:
        """Reads all of it, a piece at a time."""
        size = 0
        while data := await exchange.receive():
            size += len(data)
            assert len(data) <= 65536
        await exchange.answer(200, f"{size}\n")

    # The other routes

    async def guest_kit(self, exchange: Exchange) -> None:
        """`/guest.sh`."""
        require_read(exchange)
        await exchange.answer(200, "#!/bin/sh\n")

    async def workspace_tar(self, exchange: Exchange, repo: Repo, admission: object, may_have: object) -> None:
        """A file, by ranges."""
        require_read(exchange)
        await send_file(exchange, self.file, "a", "application/x-tar", {})

    async def freshness(self, exchange: Exchange, repo: Repo, may_have: object) -> None:
        """Too many at once."""
        raise Busy("try again")

    async def over_http(self, exchange: Exchange, path: str, rest: str | None = None) -> bool:
        """Nothing is allowed on demand."""
        return False

    def http_host(self, host: str) -> str | None:
        """Nothing is allowed on demand."""
        return None

    def handler(self) -> Handler:
        """SmartHttp over these."""
        repo = Repo(1, "acme/widgets", "http://127.0.0.1:1/acme/widgets", None, "cli", None, True, 0.0)
        gate = AccessGate(lambda _: True, self.grants, KnownGuests(time.time))
        gate.catalog = Catalog([repo])
        alike: Any = self
        return SmartHttp(alike, gate, Admission(LIMITS), alike, alike, alike, alike, alike).handle


@dataclass
class Port:
    """An HTTP port that serves one connection at a time, on its own loop."""

    loop: asyncio.AbstractEventLoop
    port: HttpPort
    behind: StandIns

    def said_to(self, parts: list[bytes]) -> tuple[bytes, float]:
        """What a guest is answered that says this and half-closes; and the longest turn of the loop meanwhile."""
        return self.loop.run_until_complete(asyncio.wait_for(self._said_to(parts), 60))

    async def _said_to(self, parts: list[bytes]) -> tuple[bytes, float]:
        ours, theirs = socket.socketpair()
        with theirs:
            for each in (ours, theirs):
                each.setblocking(False)
            acceptor = Acceptor("http", self.port.serve, Seats(8))
            work = Timed(acceptor._serve(Seat(ours, "203.0.113.9", 1)))
            serving = asyncio.create_task(work)
            saying = asyncio.create_task(self._say(theirs, parts))
            answer = bytearray()
            with contextlib.suppress(ConnectionError):
                while data := await self.loop.sock_recv(theirs, 65536):
                    answer += data
            # Before the socket is closed: a task that waits for a closed one waits for ever.
            saying.cancel()
            await asyncio.gather(saying, return_exceptions=True)
            theirs.close()
            await serving
        return bytes(answer), work.longest

    async def _say(self, sock: socket.socket, parts: list[bytes]) -> None:
        with contextlib.suppress(OSError):
            for part in parts:
                await self.loop.sock_sendall(sock, part)
            sock.shutdown(socket.SHUT_WR)


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Port]:
    """A port for all inputs."""
    file = tmp_path_factory.mktemp("http") / "file"
    file.write_bytes(b"0123456789" * 10)
    loop = asyncio.new_event_loop()
    behind = StandIns(file)
    yield Port(loop, HttpPort(behind.handler(), LIMITS), behind)
    loop.close()


class Errors(logging.Handler):
    """Collects what is logged at ERROR and above, and whatever is no plain line."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Takes a record."""
        if record.levelno >= logging.ERROR or record.exc_info:
            self.found.append(logging.Formatter().format(record))


@pytest.fixture
def errors() -> Iterator[Errors]:
    """What is logged as an error during the test."""
    handler = Errors()
    logging.getLogger().addHandler(handler)
    yield handler
    logging.getLogger().removeHandler(handler)


BODIES = st.one_of(grammar.v2(TIP), grammar.v0(TIP), grammar.pushes(TIP), st.binary(max_size=64), st.just(b"x" * 20000))


def assert_is_http(answer: bytes, said: bytes) -> None:
    """Whole responses, whose heads hold nothing of the guest's that could begin another line."""
    if not answer:
        return
    assert STATUS_LINE.match(answer), answer[:100]
    assert not set(answer.partition(b"\r\n\r\n")[0]) & set(b"\0\x07\x08\x1b\x7f"), answer[:300]
    for status in STATUS_LINE.findall(answer):
        assert status in (b"100", b"200", b"206", b"304", b"307") or status[:1] == b"4" or status in (b"501", b"503"), (
            answer
        )


def test_http_requests(port: Port, errors: Errors) -> None:
    """Answered or cut off, in short turns, with nothing but words; whatever the pieces, heads, framing and coding."""

    @HTTP.settings
    @given(grammar.http(BODIES), grammar.SEEDS)
    def run(said: bytes, seed: int) -> None:
        for data in mutations(said, seed, HTTP.variants):
            errors.found.clear()
            for attempt in range(3):
                answer, longest = port.said_to(cut(data, seed))
                if longest <= LONGEST_TURN:
                    break
                assert attempt < 2, f"the loop stood still for {longest * 1000:.0f} ms"
            assert_is_http(answer, data)
            assert not errors.found, errors.found
            assert port.behind.budget.used == 0, "memory that was counted is not given back"

    run()
