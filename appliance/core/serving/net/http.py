"""HTTP/1.1 with keep-alive: h11 on a raw socket, so that files can be sent by sendfile."""

from __future__ import annotations

import asyncio
import logging
import re
import zlib
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from http import HTTPStatus
from urllib.parse import unquote

import h11

from appliance.core.models import Caller, Guest
from appliance.core.serving.net.acceptor import Limits
from appliance.core.serving.net.http_requests import another_begins, next_event, rest_of_request
from appliance.core.serving.net.linger import linger
from appliance.core.serving.net.query import Query
from appliance.core.serving.net.seats import Seat
from appliance.core.serving.net.streams import CHUNK, IdleTimeout, SocketStream
from appliance.core.text import escape, escape_ascii

log = logging.getLogger(__name__)

LARGEST_HEAD = 32768
"""The most bytes of a request line and headers together."""
TEXT = "text/plain; charset=utf-8"
_ABSOLUTE = re.compile(rb"https?://[^/?]*", re.IGNORECASE)


class HttpError(Exception):
    """Becomes a response with a status, a text, which may quote the guest, and extra `headers`."""

    def __init__(self, status: HTTPStatus, text: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.text = escape(text, keep="\n")
        # Stands in the status line, too, because JGit and isomorphic-git show their users no more of an error.
        self.reason = escape_ascii(text.partition("\n")[0], 200).encode()
        self.headers = dict(headers or {})


class _FilePart:
    """Stands for a part of a file in h11's output: h11 does the framing, and the kernel copies the bytes."""

    def __init__(self, file: int, offset: int, count: int) -> None:
        self.file = file
        self.offset = offset
        self.count = count

    def __len__(self) -> int:
        return self.count


class Exchange:
    """One request and its response. After `start`, it is a Sink for the body of the response."""

    def __init__(self, connection: h11.Connection, stream: SocketStream, request: h11.Request, seat: Seat) -> None:
        self._connection = connection
        self.stream = stream
        self.seat = seat
        self.client = seat.client
        self.guest: Guest | None = None
        self.method = request.method.decode("ascii", "replace")
        # A proxy may pass on the whole address, which a server must accept (RFC 9112, section 3.2.2).
        self.target = _ABSOLUTE.sub(b"", request.target, count=1) if request.target[:1] != b"/" else request.target
        self.raw_headers = list(request.headers)
        target, _, self._query = self.target.decode("ascii", "replace").partition("?")
        self.path = unquote(target, errors="replace")
        self.headers = {name.decode("ascii"): value.decode("latin-1") for name, value in request.headers}
        if {"content-length", "transfer-encoding"} <= self.headers.keys():
            # A proxy may read it as a different request (RFC 9112, section 6.1), and the length says nothing about the
            # body.
            raise HttpError(HTTPStatus.BAD_REQUEST, "a request has either a content-length or chunks\n")
        self.started = False
        self.body_from = 0
        """What `stream.sent` is before the first byte of the response's body."""
        self._held = b""
        self._unread = b""
        self._ended = False
        self.is_last = False
        """Whether the connection ends with this response."""
        self.body_held_back = False
        """The client waited for `100 Continue` and got a response instead, so it may never send its body."""

    @property
    def caller(self) -> Caller:
        """Who sent this request. `guest` is set by who looks it up."""
        return Caller(self.client, "http", self.guest)

    @cached_property
    def query(self) -> Query:
        """The fields of the query. Raises HttpError."""
        try:
            return Query(self._query)
        except ValueError:
            raise HttpError(HTTPStatus.BAD_REQUEST, "malformed query\n") from None

    @cached_property
    def _inflate(self) -> zlib._Decompress | None:
        """What decodes the body; None if it is not compressed. Raises HttpError."""
        encoding = self.headers.get("content-encoding", "identity").lower()
        if encoding in ("gzip", "x-gzip"):
            return zlib.decompressobj(wbits=31)
        if encoding != "identity":
            raise HttpError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "gzip is the only content-encoding accepted here\n")
        return None

    def receiving_within(self, seconds: float) -> AbstractContextManager[None]:
        """A context in which the whole body must arrive within `seconds`."""
        return self.stream.within(seconds)

    @property
    def coded_size(self) -> int | None:
        """The bytes of a compressed body, from `content-length`; None if it is not compressed or gives no length."""
        length = self.headers.get("content-length")
        return int(length) if self._inflate is not None and length is not None else None

    async def receive_coded(self, grow: Callable[[int], Awaitable[None]]) -> bytes:
        """The whole body as it was sent, for `receive` to decode. The caller must check `coded_size` first.

        Calls `grow` with the size of each piece; it may wait or raise.
        """
        coded = bytearray()
        while piece := await self._next_piece():
            await grow(len(piece))
            coded += piece
        self._unread = bytes(coded)
        return self._unread

    async def receive(self) -> bytes:
        """The next bytes of the body, decoded; empty at the end. Raises HttpError, IdleTimeout, OSError."""
        if self._inflate is None:
            return await self._next_piece()
        while True:
            if self._inflate.unused_data:
                # zlib would keep these bytes and all that follow, and copy them all for each piece.
                raise HttpError(HTTPStatus.BAD_REQUEST, "bytes follow the end of the body's gzip\n")
            if rest := self._unread or self._inflate.unconsumed_tail:
                self._unread = b""
                if inflated := self._inflated(rest):
                    return inflated
                continue
            self._unread = await self._next_piece()
            if not self._unread:
                if not self._inflate.eof:
                    raise HttpError(HTTPStatus.BAD_REQUEST, "the body ends in the middle of its gzip\n")
                return b""

    @property
    def has_body(self) -> bool:
        """Whether a body follows the head."""
        return "transfer-encoding" in self.headers or self.headers.get("content-length", "0") != "0"

    async def hung_up(self) -> None:
        """Returns when the client has disconnected. Call it once the whole body was received."""
        ahead = 0
        while data := await self.stream.arrives():
            # The client's next request, which waits until this one is answered.
            self._connection.receive_data(data)
            ahead += len(data)
            if ahead > LARGEST_HEAD:
                await asyncio.Event().wait()
        self._connection.receive_data(b"")

    async def end_request(self) -> None:
        """Receives the end of a request without a body."""
        await self._next_piece()

    async def _next_piece(self) -> bytes:
        """The next bytes of the body, not decoded; empty at the end, and empty again if called again."""
        if self._ended:
            return b""
        if self._connection.they_are_waiting_for_100_continue:
            await self.stream.send(self._connection.send(h11.InformationalResponse(status_code=100, headers=[])))
        event = await next_event(self._connection, self.stream)
        if isinstance(event, h11.ConnectionClosed):
            raise ConnectionResetError("the client disconnected in the middle of its request")
        if isinstance(event, h11.Data):
            return bytes(event.data)
        # If called again, h11 would wait for the next request.
        self._ended = True
        return b""

    def _inflated(self, data: bytes) -> bytes:
        assert self._inflate is not None
        try:
            # Inflates one piece at a time, because a small request can inflate to gigabytes.
            return self._inflate.decompress(data, CHUNK)
        except zlib.error:
            raise HttpError(HTTPStatus.BAD_REQUEST, "the body is not gzip\n") from None

    async def start(self, status: int, headers: Mapping[str, str], reason: bytes = b"") -> None:
        """Prepares the head, sent with the first bytes of the body. Without `content-length`, the body is chunked."""
        fields = [("server", "gitmirror"), *headers.items()]
        if self.is_last:
            fields.append(("connection", "close"))
        self.started = True
        # h11 resets this when the response begins.
        self.body_held_back = self._connection.they_are_waiting_for_100_continue
        reason = reason or HTTPStatus(status).phrase.encode()
        response = h11.Response(status_code=status, headers=fields, reason=reason)
        self._held += self._connection.send(response) or b""
        self.body_from = self.stream.sent + len(self._held)

    async def send(self, data: bytes) -> None:
        """Sends a piece of the body."""
        if data:
            await self._flush(self._connection.send(h11.Data(data=data)) or b"")

    async def send_file(self, file: int, offset: int, count: int) -> None:
        """Sends a piece of the body from an open file."""
        part = _FilePart(file, offset, count)
        for piece in self._connection.send_with_data_passthrough(h11.Data(data=part)) or []:  # type: ignore[arg-type]
            if isinstance(piece, _FilePart):
                await self._flush(b"", more=True)
                await self.stream.send_file(piece.file, piece.offset, piece.count)
            else:
                self._held += piece

    async def finish(self) -> None:
        """Ends the response."""
        await self._flush(self._connection.send(h11.EndOfMessage()) or b"")

    async def _flush(self, data: bytes, *, more: bool = False) -> None:
        """Sends the bytes held back and then `data`, so that the framing needs no packets of its own."""
        held = self._held + data
        self._held = b""
        if held:
            await self.stream.send(held, more=more)

    def make_last(self) -> None:
        """Ends the connection after this response, which says so unless its head is already on its way."""
        self.is_last = True

    def abort(self) -> None:
        """Cuts the connection."""
        self.stream.abort()

    async def answer(
        self, status: int, text: str, headers: Mapping[str, str] | None = None, reason: bytes = b""
    ) -> None:
        """Sends a complete response."""
        body = text.encode("utf-8", "replace")
        fields = {"content-type": TEXT, "content-length": str(len(body)), **(headers or {})}
        await self.start(status, fields, reason)
        if self.method != "HEAD":
            await self.send(body)
        await self.finish()


Handler = Callable[[Exchange], Awaitable[None]]
Explain = Callable[[HttpError, bytes], tuple[str, str]]
"""Returns the content type and the text for an error. The target is empty when no whole head was read."""


def in_plain_text(error: HttpError, target: bytes) -> tuple[str, str]:
    """Explains an error to a person."""
    return TEXT, error.text


class HttpPort:
    """Serves the connections of one port: passes each request to `handler`, and turns its errors into responses.

    `kept` is how long a connection may wait for its next request, in seconds; by default `request_timeout`.
    """

    def __init__(
        self, handler: Handler, limits: Limits, explain: Explain = in_plain_text, kept: float | None = None
    ) -> None:
        self._handler = handler
        self._limits = limits
        self._explain = explain
        self._kept = limits.request_timeout if kept is None else kept

    async def serve(self, seat: Seat, arrived: bytes = b"") -> None:
        """Serves one connection, request by request, until either side ends it.

        `arrived` are bytes that the caller has read from it.
        """
        client = seat.client
        stream = SocketStream(seat.socket, self._limits.idle_timeout)
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=LARGEST_HEAD)
        if arrived:
            connection.receive_data(arrived)
        try:
            async with asyncio.timeout(self._limits.total_timeout):
                if seat.refused:
                    busy = HttpError(
                        HTTPStatus.SERVICE_UNAVAILABLE, "too many connections; try again\n", {"retry-after": "1"}
                    )
                    await self._answer_unread(connection, stream, busy)
                    await linger(stream)
                    return
                while await self._exchange(connection, stream, seat):
                    connection.start_next_cycle()
                    if not await another_begins(connection, stream, self._kept):
                        break
                    # Pipelined requests are answered without a wait in between, so other tasks run here.
                    await asyncio.sleep(0)
            if connection.their_state is not h11.CLOSED and await linger(stream) and seat.on_closed is not None:
                seat.on_closed()
        except (IdleTimeout, TimeoutError):
            log.info("%s was cut off: too slow over HTTP", client)
        except (OSError, h11.ProtocolError) as error:
            log.info("%s: HTTP connection ended early: %s", client, error)

    async def _exchange(self, connection: h11.Connection, stream: SocketStream, seat: Seat) -> bool:
        """Serves one request; returns whether another may follow on this connection."""
        exchange: Exchange | None = None
        target = b""
        try:
            with stream.within(self._limits.request_timeout):
                request = await next_event(connection, stream)
            if not isinstance(request, h11.Request):
                return False
            target = request.target
            exchange = Exchange(connection, stream, request, seat)
            await self._handler(exchange)
        except HttpError as error:
            if exchange is None:
                await self._answer_unread(connection, stream, error, target)
            elif exchange.started:
                return False
            else:
                content_type, text = self._explain(error, target)
                await exchange.answer(error.status, text, {"content-type": content_type, **error.headers}, error.reason)
        except h11.RemoteProtocolError as error:
            malformed = HttpError(HTTPStatus(error.error_status_hint), "malformed request\n")
            await self._answer_unread(connection, stream, malformed, target)
            return False
        if exchange is not None and (exchange.body_held_back or exchange.is_last):
            return False
        return await rest_of_request(connection, stream)

    async def _answer_unread(
        self, connection: h11.Connection, stream: SocketStream, error: HttpError, target: bytes = b""
    ) -> None:
        if connection.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        content_type, text = self._explain(error, target)
        body = text.encode()
        head = [("content-type", content_type), ("content-length", str(len(body))), ("connection", "close")]
        response = h11.Response(status_code=error.status, headers=head, reason=error.reason)
        for event in (response, h11.Data(data=body), h11.EndOfMessage()):
            await stream.send(connection.send(event) or b"")
