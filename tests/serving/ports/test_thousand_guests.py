"""A thousand guests at once beside a hostile one: all are served, and `serve` stays small."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.conftest import WIDGETS
from tests.serving.conftest import SETTLED, Node, is_whole_pack
from tests.serving.fetch.conftest import wait_warm
from tests.serving.fetch.wire import fetch_request, pack_of, v2_request
from tests.serving.ports.test_fair import FIRST, HERE, POST, THERE, address_of, half_a_request, rss
from tests.support.gitutil import git
from tests.support.pkt import FLUSH, pkt
from tests.support.serve import Serve
from tests.support.upstream import HttpUpstream

GUESTS = 1000
MIB = 2**20
MOST_MEMORY = 256 * MIB
"""What `serve` takes by itself, the whole budget for requests, and as much again as a third of it."""


@pytest.fixture
def node(tmp_path: Path, generated_bare: Path) -> Iterator[Node]:
    """A node as it is by default."""
    with HttpUpstream(tmp_path / "upstream") as upstream:
        upstream.add(WIDGETS, generated_bare)
        with Serve(
            tmp_path / "state",
            repos=[upstream.url(WIDGETS)],
            refresh=SETTLED,
            serve={"queue_timeout": "5m", "request_timeout": "5m"},
            workspace={"enabled": False},
        ).start() as serve:
            serve.wait_for_repo(WIDGETS)
            wait_warm(serve)
            yield Node(serve, upstream)


async def read_to_flush(reader: asyncio.StreamReader) -> bytes:
    """One answer."""
    found = bytearray()
    while True:
        head = await reader.readexactly(4)
        found += head
        if head == FLUSH:
            return bytes(found)
        found += await reader.readexactly(max(int(head, 16), 4) - 4)


async def guest(serve: Serve, request: bytes, start: asyncio.Event) -> bool:
    """Connects with all others, lists the refs and fetches; whether it has a whole pack."""
    host, port = address_of(serve, http=False)
    reader, writer = await asyncio.open_connection(host, port, local_addr=(THERE, 0))
    with contextlib.closing(writer):
        await start.wait()
        writer.write(FIRST)
        await read_to_flush(reader)
        writer.write(v2_request("ls-refs", ["peel", "symrefs", "ref-prefix refs/heads/"]))
        await read_to_flush(reader)
        writer.write(request)
        return is_whole_pack(pack_of(await read_to_flush(reader)))


@contextlib.asynccontextmanager
async def hostile(serve: Serve, request: bytes) -> AsyncIterator[None]:
    """One address that idles, stalls, floods, unpacks and asks for too much, all at once; the block begins then."""
    body = gzip.compress(pkt(b"x" * 60_000) * 500)
    bomb = f"{POST}Content-Encoding: gzip\r\nContent-Length: {len(body) + 99}\r\n\r\n".encode() + body
    prefixes = v2_request("ls-refs", [f"ref-prefix refs/heads/{number}" for number in range(60_000)])
    sayings = [
        *((True, b"") for _ in range(1500)),
        *((False, FIRST) for _ in range(500)),
        *((False, FIRST + request) for _ in range(300)),
        *((True, half_a_request(30 * MIB)) for _ in range(12)),
        *((True, bomb) for _ in range(12)),
        *((False, FIRST + prefixes) for _ in range(8)),
        *((True, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 20_000) for _ in range(4)),
    ]
    loop, said = asyncio.get_running_loop(), 0

    async def say(http: bool, saying: bytes) -> None:
        nonlocal said
        with contextlib.suppress(OSError), socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.setblocking(False)
            sock.bind((HERE, 0))
            await loop.sock_connect(sock, address_of(serve, http=http))
            said += 1
            await loop.sock_sendall(sock, saying)
            await asyncio.Event().wait()

    tasks = [asyncio.create_task(say(http, saying)) for http, saying in sayings]
    try:
        async with asyncio.timeout(120):
            while said < len(sayings):
                await asyncio.sleep(0.05)
        # What they say is on its way; some of it is never taken. What it costs is there before the guests come.
        async with asyncio.timeout(60):
            held, before = rss(serve), 0
            while held > before + MIB:
                await asyncio.sleep(2)
                held, before = rss(serve), held
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_thousand_guests_beside_a_hostile_one(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    """Each lists the refs and fetches a tip, all in the same moment."""
    serve = node.serve
    request = fetch_request(git("rev-parse", "main", cwd=node.mirror), "ofs-delta", "deepen 1")

    async def crowd() -> list[bool | BaseException]:
        start = asyncio.Event()
        async with hostile(serve, request):
            guests = [asyncio.create_task(guest(serve, request, start)) for _ in range(GUESTS)]
            await asyncio.sleep(0)
            start.set()
            return await asyncio.gather(*guests, return_exceptions=True)

    outcomes = asyncio.run(crowd())
    status = Path(f"/proc/{serve.pid}/status").read_text()
    now, peak = (int(status.partition(f"{name}:")[2].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    with capsys.disabled():
        print(f"\nserve's memory: {now // MIB} MiB now, {peak // MIB} MiB at its peak")
    failed = [outcome for outcome in outcomes if outcome is not True]
    assert not failed, f"{len(failed)} of {GUESTS}: {failed[:3]}"
    assert peak < MOST_MEMORY
