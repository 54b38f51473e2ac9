"""The HTTP port: whole answers, kept connections, and what comes that is no request."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.core.serving.net.acceptor import Acceptor, Limits
from appliance.core.serving.net.http import LARGEST_HEAD, Exchange, Handler, HttpError, HttpPort
from appliance.core.serving.net.http_pages import TextResponse, plain_routes, require_read
from appliance.core.serving.net.seats import Seats
from appliance.core.serving.net.sockets import listen
from appliance.core.units import Address

LIMITS = Limits(max_clients=8, queue_timeout=60, request_timeout=60, idle_timeout=60, total_timeout=600)
IMPATIENT = replace(LIMITS, request_timeout=0.5, idle_timeout=0.5)


async def route(exchange: Exchange) -> None:
    """What the tests ask for: every way in which a handler answers, and some in which it fails."""
    match exchange.path:
        case "/chunked":
            await exchange.start(200, {"content-type": "text/plain"})
            for piece in (b"one", b"", b"two"):
                await exchange.send(piece)
            await exchange.finish()
        case "/echo":
            body = b""
            while more := await exchange.receive():
                body += more
            await exchange.answer(200, f"{len(body)} {body[:20].decode('latin-1')}")
        case "/seen":
            seen = {"path": exchange.path, "query": exchange.query, "host": exchange.headers.get("host")}
            await exchange.answer(200, json.dumps(seen))
        case "/file":
            with Path(__file__).open("rb") as file:
                await exchange.start(200, {"content-length": "100"})
                await exchange.send_file(file.fileno(), 3, 100)
                await exchange.finish()
        case "/teapot":
            raise HttpError(HTTPStatus.IM_A_TEAPOT, "short and stout\n", {"x-handle": "1"})
        case "/late":
            await exchange.start(200, {})
            await exchange.send(b"half")
            raise HttpError(HTTPStatus.INTERNAL_SERVER_ERROR, "too late")
        case "/bug":
            raise ZeroDivisionError
        case _:
            await plain_routes({"/healthz": lambda: TextResponse(200, "ok\n")})(exchange)


@contextlib.asynccontextmanager
async def port(handler: Handler = route, limits: Limits = LIMITS) -> AsyncIterator[int]:
    """A running port's number."""
    listening = listen(Address("127.0.0.1", 0), "http")
    acceptor = Acceptor("http", HttpPort(handler, limits).serve, Seats(limits.max_connections))
    acceptor.start([listening])
    try:
        yield listening.getsockname()[1]
    finally:
        await acceptor.stop(0)


@dataclass
class Client:
    """A raw HTTP client."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        """Sends bytes as they are."""
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, *, head: bool = False) -> tuple[int, dict[str, str], bytes]:
        """One answer: its status, headers and body. Status 0: the connection ended instead."""
        try:
            top = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except asyncio.IncompleteReadError as error:
            return 0, {}, error.partial
        first, *lines = top.rstrip().split("\r\n")
        headers = {name.lower(): value.strip() for name, value in (line.split(":", 1) for line in lines)}
        body = b""
        if headers.get("transfer-encoding") == "chunked":
            while size := int(await self.reader.readline(), 16):
                body += await self.reader.readexactly(size)
                await self.reader.readline()
            await self.reader.readline()
        elif not head:
            body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        return int(first.split()[1]), headers, body

    async def rest(self) -> bytes:
        """All that still comes."""
        return await self.reader.read()


def play(script: Callable[[Client], Awaitable[None]], handler: Handler = route, limits: Limits = LIMITS) -> None:
    """Runs `script` with a connection to a port; what waits for ever fails after a minute."""

    async def bounded() -> None:
        async with asyncio.timeout(60), port(handler, limits) as number:
            reader, writer = await asyncio.open_connection("127.0.0.1", number)
            try:
                await script(Client(reader, writer))
            finally:
                writer.close()

    asyncio.run(bounded())


def asked(data: bytes, *, head: bool = False, limits: Limits = LIMITS) -> tuple[int, dict[str, str], bytes]:
    """The one answer to `data`."""
    found: list[tuple[int, dict[str, str], bytes]] = []

    async def script(client: Client) -> None:
        await client.send(data)
        found.append(await client.answer(head=head))

    play(script, limits=limits)
    return found[0]


def get(path: str, *headers: str, method: str = "GET", version: str = "1.1") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/{version}", "Host: mirror", *headers, "", ""]).encode("latin-1")


def test_a_path_is_answered_whole() -> None:
    """With its length and type."""
    status, headers, body = asked(get("/healthz"))
    assert (status, body) == (200, b"ok\n")
    assert headers["content-length"] == "3"
    assert headers["content-type"] == "text/plain; charset=utf-8"
    assert headers["server"] == "gitmirror"


def test_head_is_get_without_the_body() -> None:
    """The same headers, and the connection goes on."""

    async def script(client: Client) -> None:
        await client.send(get("/healthz", method="HEAD"))
        status, headers, _ = await client.answer(head=True)
        assert (status, headers["content-length"]) == (200, "3")
        await client.send(get("/healthz"))
        assert (await client.answer())[2] == b"ok\n"

    play(script)


def test_an_unknown_path_is_404_and_another_method_405() -> None:
    """405 says what is allowed; the connection goes on."""

    async def script(client: Client) -> None:
        for method in ("GET", "HEAD", "POST"):
            await client.send(get("/nothing", "content-length: 0", method=method))
            assert (await client.answer(head=method == "HEAD"))[0] == 404
        for method in ("POST", "PUT", "DELETE", "OPTIONS"):
            await client.send(get("/healthz", "content-length: 0", method=method))
            status, headers, _ = await client.answer()
            assert (status, headers["allow"]) == (405, "GET, HEAD")

    play(script)


def test_pipelined_requests_are_answered_in_order() -> None:
    """All in one packet, the last one closes."""

    async def script(client: Client) -> None:
        await client.send(get("/healthz") + get("/chunked") + get("/nothing") + get("/seen", "connection: close"))
        answers = [await client.answer() for _ in range(4)]
        assert [answer[0] for answer in answers] == [200, 200, 404, 200]
        assert answers[1][2] == b"onetwo"
        assert await client.rest() == b""

    play(script)


def test_an_old_client_gets_one_answer_and_the_end() -> None:
    """HTTP/1.0: busybox wget, for one."""

    async def script(client: Client) -> None:
        await client.send(get("/healthz", version="1.0"))
        assert (await client.answer())[2] == b"ok\n"
        assert await client.rest() == b""

    play(script)


def test_a_half_closed_client_gets_its_answer() -> None:
    """A proxy in front of it may do so."""

    async def script(client: Client) -> None:
        await client.send(get("/chunked"))
        client.writer.write_eof()
        assert (await client.answer())[2] == b"onetwo"
        assert await client.rest() == b""

    play(script)


def test_path_query_and_headers_are_decoded() -> None:
    """Percent escapes, the last of equal names, names of headers in any case."""
    _, _, body = asked(get("/s%65en?ref=a%2Fb&ref=c+d&empty=", "X: y").replace(b"Host: mirror", b"hOST: other"))
    assert json.loads(body) == {"path": "/seen", "query": {"ref": "c d"}, "host": "other"}


@pytest.mark.parametrize("pieces", [1, 7, 10_000])
@pytest.mark.parametrize("coding", ["length", "chunked", "gzip", "chunked gzip"])
def test_a_body_comes_whole_however_it_is_sent(pieces: int, coding: str) -> None:
    """git sends its requests chunked and in gzip."""
    body = b"0123456789" * 30
    sent = gzip.compress(body) if "gzip" in coding else body
    headers = ["content-encoding: gzip"] if "gzip" in coding else []
    if "chunked" in coding:
        headers.append("transfer-encoding: chunked")
        cut = [sent[at : at + 50] for at in range(0, len(sent), 50)]
        sent = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in cut) + b"0\r\n\r\n"
    else:
        headers.append(f"content-length: {len(sent)}")
    data = get("/echo", *headers, method="POST") + sent

    async def script(client: Client) -> None:
        for at in range(0, len(data), pieces):
            await client.send(data[at : at + pieces])
        assert (await client.answer())[2] == b"300 01234567890123456789"

    play(script)


def test_a_body_that_inflates_to_much_is_read_a_piece_at_a_time() -> None:
    """A hundred megabytes in a hundred kilobytes: the handler decides how much it takes."""
    taken: list[int] = []

    async def look(exchange: Exchange) -> None:
        while (more := await exchange.receive()) and sum(taken) < 2**20:
            taken.append(len(more))
        await exchange.answer(200, "enough")

    bomb = gzip.compress(b"\0" * 100_000_000, 9)

    async def script(client: Client) -> None:
        head = get("/", "content-encoding: gzip", f"content-length: {len(bomb)}", method="POST")
        await client.send(head + bomb)
        assert (await client.answer())[2] == b"enough"

    play(script, look)
    assert max(taken) <= 65536


@pytest.mark.parametrize("more", [b"x", gzip.compress(b"more")], ids=["a byte", "another gzip"])
def test_what_follows_the_end_of_a_gzip_is_refused(more: bytes) -> None:
    """It might be half of what the client meant to say."""
    body = gzip.compress(b"hello") + more
    head = get("/echo", "content-encoding: gzip", f"content-length: {len(body)}", method="POST")
    status, _, text = asked(head + body)
    assert (status, text) == (400, b"bytes follow the end of the body's gzip\n")


def test_bytes_without_end_behind_a_gzip_are_not_kept() -> None:
    """zlib keeps them all and copies what it has for each piece that comes: 64 MB held the loop for 20 seconds."""
    piece = b"x" * 65536

    async def script(client: Client) -> None:
        await client.send(get("/echo", "content-encoding: gzip", f"content-length: {2**30}", method="POST"))
        await client.send(gzip.compress(b"hello"))
        answer, sent = asyncio.create_task(client.answer()), 0
        while not answer.done() and sent < 2**28:
            await client.send(piece)
            sent += len(piece)
            await asyncio.sleep(0)
        assert (await answer)[0] == 400
        assert sent < 2**24, "as much as is in buffers on the way"

    play(script)


def test_a_request_with_a_length_and_chunks_is_refused() -> None:
    """It might be another request to a proxy (RFC 9112, section 6.1), and limits on a body rely on its length."""

    async def script(client: Client) -> None:
        both = get("/echo", "content-length: 5000", "transfer-encoding: chunked", method="POST")
        await client.send(both + b"1\r\nx\r\n0\r\n\r\n" + get("/healthz"))
        status, headers, text = await client.answer()
        assert (status, headers["connection"]) == (400, "close")
        assert text == b"a request has either a content-length or chunks\n"
        assert await client.rest() == b""

    play(script)


def test_a_client_that_waits_for_100_continue_is_told_to_go_on() -> None:
    """curl does for more than a kilobyte; an answer without reading the body ends the connection instead."""

    async def script(client: Client) -> None:
        await client.send(get("/echo", "expect: 100-continue", "content-length: 5", method="POST"))
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 \r\n\r\n"
        await client.send(b"hello")
        assert (await client.answer())[2] == b"5 hello"
        await client.send(get("/nothing", "expect: 100-continue", "content-length: 5", method="POST"))
        assert (await client.answer())[0] == 404
        assert await client.rest() == b""

    play(script)


def test_a_body_that_nobody_read_does_not_become_the_next_request() -> None:
    """It is read away, and the connection goes on."""

    async def script(client: Client) -> None:
        inner = get("/seen")
        await client.send(get("/nothing", f"content-length: {len(inner)}", method="POST") + inner + get("/healthz"))
        assert (await client.answer())[0] == 404
        assert (await client.answer())[2] == b"ok\n"

    play(script)


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        (["content-encoding: br", "content-length: 1"], b"x", 415),
        (["content-encoding: gzip", "content-length: 8"], b"not gzip", 400),
        (["content-length: 5", "content-length: 6"], b"hello", 400),
        (["content-length: x"], b"", 400),
        (["content-length: -1"], b"", 400),
        (["transfer-encoding: gzip"], b"", 501),
    ],
)
def test_a_body_that_cannot_be_read_is_refused(headers: list[str], body: bytes, status: int) -> None:
    """With a status, not with silence."""
    assert asked(get("/echo", *headers, method="POST") + body)[0] == status


# fmt: off
GARBAGE = [
    b"\r\n\r\n\r\n", b"hello\r\n\r\n", b"GET /healthz\r\n\r\n", b"\x16\x03\x01\x02\x00\x01",
    b"GET /healthz HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"0032git-upload-pack /a/b\0host=h\0\r\n\r\n", b"GET /\x00 HTTP/1.1\r\nHost: h\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: h\r\nbad header\r\n\r\n", b"G" * (LARGEST_HEAD + 100),
    get("/healthz", "x: " + "y" * 4 * LARGEST_HEAD),
]
# fmt: on


@pytest.mark.parametrize("garbage", GARBAGE, ids=lambda garbage: repr(garbage[:24]))
def test_what_is_no_request_is_told_so_and_cut_off(garbage: bytes) -> None:
    """400 or 431 in plain text; the answer is not lost to a reset; the next client is served."""

    async def script(client: Client) -> None:
        await client.send(garbage)
        client.writer.write_eof()
        status, headers, _ = await client.answer()
        assert status in (400, 431)
        assert headers["connection"] == "close"
        assert await client.rest() == b""

    play(script)


@pytest.mark.parametrize("query", ["a=1&" * 100, "%", "%zz=%ff", "&&&==", "\x7f"])
def test_an_odd_query_is_answered(query: str) -> None:
    """Read as far as it makes sense, or 400; never a dropped connection."""
    assert asked(get(f"/healthz?{query}"))[0] in (200, 400)


@given(st.binary(min_size=1, max_size=200), st.booleans())
@settings(max_examples=25, deadline=None)
def test_any_bytes_are_answered_or_cut_off(garbage: bytes, behind_a_request: bool) -> None:
    """In time, and without an exception in the log of whoever runs it."""

    async def script(client: Client) -> None:
        await client.send((get("/healthz") if behind_a_request else b"") + garbage)
        client.writer.write_eof()
        if behind_a_request:
            assert (await client.answer())[0] == 200
        answer = await client.rest()
        assert not answer or answer.startswith(b"HTTP/1.1 ")

    play(script)


def test_a_client_that_is_slow_with_its_request_is_cut_off() -> None:
    """Byte by byte does not help: the request as a whole has a deadline."""

    async def script(client: Client) -> None:
        async def trickle() -> None:
            with contextlib.suppress(OSError):
                while True:
                    await client.send(b"G")
                    await asyncio.sleep(0.05)

        trickling = asyncio.create_task(trickle())
        with contextlib.suppress(OSError):
            await client.rest()
        trickling.cancel()
        await asyncio.gather(trickling, return_exceptions=True)

    play(script, limits=IMPATIENT)


def test_a_kept_connection_that_says_nothing_more_is_closed() -> None:
    """It would hold a descriptor for ever."""

    async def script(client: Client) -> None:
        await client.send(get("/healthz"))
        assert (await client.answer())[0] == 200
        assert await client.rest() == b""

    play(script, limits=IMPATIENT)


@pytest.mark.slow
def test_a_client_that_takes_nothing_is_cut_off() -> None:
    """Its answer is larger than all buffers between."""
    done = asyncio.Event()

    async def flood(exchange: Exchange) -> None:
        try:
            await exchange.start(200, {})
            for _ in range(1000):
                await exchange.send(b"x" * 65536)
        finally:
            done.set()

    async def script(client: Client) -> None:
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await client.send(get("/"))
        await done.wait()

    play(script, flood, limits=IMPATIENT)


def test_an_error_of_the_handler_is_its_answer() -> None:
    """Status, text and headers; the connection goes on."""

    async def script(client: Client) -> None:
        await client.send(get("/teapot"))
        status, headers, body = await client.answer()
        assert (status, headers["x-handle"], body) == (418, "1", b"short and stout\n")
        await client.send(get("/healthz"))
        assert (await client.answer())[0] == 200

    play(script)


@pytest.mark.parametrize(
    ("target", "line"),
    [
        (b"/acme/widgets", "HTTP/1.1 404 /acme/widgets is not here"),
        (b"/a%0d%0aset-cookie:%20x%00%1b", "HTTP/1.1 404 /a\\r"),
        (b"/caf%C3%A9%FF", "HTTP/1.1 404 /caf\\xe9\\ufffd is not here"),
        (b"/" + b"a" * 1000, "HTTP/1.1 404 /" + "a" * 196 + "..."),
    ],
    ids=["path", "line-break", "not-ascii", "long"],
)
def test_the_reason_phrase_of_an_error_says_what_is_wrong(target: bytes, line: str) -> None:
    """Clients that print no body of an error print this: one line of printable ASCII, whatever the guest said."""

    async def missing(exchange: Exchange) -> None:
        raise HttpError(HTTPStatus.NOT_FOUND, f"{exchange.path} is not here\nand a second line\n")

    async def script(client: Client) -> None:
        await client.send(get(target.decode()))
        head = await client.reader.readuntil(b"\r\n\r\n")
        assert head.decode("ascii").splitlines()[0] == line
        assert b"set-cookie" not in head.partition(b"\r\n")[2]

    play(script, missing)


def test_an_error_in_the_middle_of_an_answer_cuts_it_off() -> None:
    """The client sees that it is not whole: the last chunk never comes."""

    async def script(client: Client) -> None:
        await client.send(get("/late") + get("/healthz"))
        rest = await client.rest()
        assert b"half" in rest
        assert b"0\r\n\r\n" not in rest
        assert rest.count(b"HTTP/1.1") == 1

    play(script)


def test_a_bug_in_a_handler_ends_that_connection_only() -> None:
    """Another one is served."""

    async def bounded() -> None:
        async with asyncio.timeout(60), port() as number:
            for path, answered in (("/bug", (0, 500)), ("/healthz", (200,))):
                reader, writer = await asyncio.open_connection("127.0.0.1", number)
                client = Client(reader, writer)
                await client.send(get(path))
                assert (await client.answer())[0] in answered
                writer.close()

    asyncio.run(bounded())


def test_a_part_of_a_file_goes_out_as_it_is() -> None:
    """By sendfile, framed by its length."""
    assert asked(get("/file"))[2] == Path(__file__).read_bytes()[3:103]


def test_requiring_a_read_lets_get_and_head_through() -> None:
    """405 for everything else."""

    async def guarded(exchange: Exchange) -> None:
        require_read(exchange)
        await exchange.answer(200, "")

    async def script(client: Client) -> None:
        for method, expected in (("GET", 200), ("HEAD", 200), ("POST", 405), ("PATCH", 405)):
            await client.send(get("/", "content-length: 0", method=method))
            assert (await client.answer(head=method == "HEAD"))[0] == expected

    play(script, guarded)


def test_a_client_that_is_reset_leaves_nothing_behind() -> None:
    """In the middle of its request and of its answer; the port goes on."""

    async def bounded() -> None:
        async with asyncio.timeout(60), port() as number:
            for path in ("/echo", "/chunked"):
                client = socket.create_connection(("127.0.0.1", number))
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
                client.sendall(get(path, "content-length: 5", method="POST") + b"he")
                client.close()
            reader, writer = await asyncio.open_connection("127.0.0.1", number)
            await Client(reader, writer).send(get("/healthz"))
            assert (await Client(reader, writer).answer())[0] == 200
            writer.close()

    asyncio.run(bounded())
