"""HTTP/1.1 with keep-alive: h11 on a raw socket, so that files can be sent by sendfile."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import zlib
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from http import HTTPStatus
from urllib.parse import parse_qs, unquote

import h11

from appliance.core.models import Caller, Guest
from appliance.core.serving.net.acceptor import Limits
from appliance.core.serving.net.seats import Seat
from appliance.core.serving.net.streams import CHUNK, IdleTimeout, SocketStream
from appliance.core.text import escape

log = logging.getLogger(__name__)

LARGEST_HEAD = 32768
"""The most bytes of a request line and headers together."""
LINGER_BYTES = 2**20
LINGER_SECONDS = 2.0
TEXT = "text/plain; charset=utf-8"


class HttpError(Exception):
    """Becomes a response with a status, a text, which may quote the guest, and extra `headers`."""

    def __init__(self, status: HTTPStatus, text: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.text = escape(text, keep="\n")
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
        self._stream = stream
        self.seat = seat
        self.client = seat.client
        self.guest: Guest | None = None
        self.method = request.method.decode("ascii", "replace")
        self.target = request.target
        self.raw_headers = list(request.headers)
        target, _, self._query = request.target.decode("ascii", "replace").partition("?")
        self.path = unquote(target, errors="replace")
        self.headers = {name.decode("ascii"): value.decode("latin-1") for name, value in request.headers}
        if {"content-length", "transfer-encoding"} <= self.headers.keys():
            # A proxy may read it as a different request (RFC 9112, section 6.1), and the length says nothing about the
            # body.
            raise HttpError(HTTPStatus.BAD_REQUEST, "a request has either a content-length or chunks\n")
        self.started = False
        self._held = b""
        self._unread = b""
        self._ended = False
        self.body_held_back = False
        """The client waited for `100 Continue` and got a response instead, so it may never send its body."""

    @property
    def caller(self) -> Caller:
        """Who sent this request. `guest` is set by who looks it up."""
        return Caller(self.client, "http", self.guest)

    @cached_property
    def query(self) -> dict[str, str]:
        """The fields of the query, each with its last value. Raises HttpError."""
        try:
            fields = parse_qs(self._query, max_num_fields=16) if self._query else {}
        except ValueError:
            raise HttpError(HTTPStatus.BAD_REQUEST, "malformed query\n") from None
        return {name: values[-1] for name, values in fields.items()}

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
        return self._stream.within(seconds)

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
        while data := await self._stream.arrives():
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
            await self._stream.send(self._connection.send(h11.InformationalResponse(status_code=100, headers=[])))
        event = await _next_event(self._connection, self._stream)
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

    async def start(self, status: int, headers: Mapping[str, str]) -> None:
        """Prepares the head, sent with the first bytes of the body. Without `content-length`, the body is chunked."""
        fields = [("server", "gitmirror"), *headers.items()]
        self.started = True
        # h11 resets this when the response begins.
        self.body_held_back = self._connection.they_are_waiting_for_100_continue
        response = h11.Response(status_code=status, headers=fields, reason=HTTPStatus(status).phrase.encode())
        self._held += self._connection.send(response) or b""

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
                await self._stream.send_file(piece.file, piece.offset, piece.count)
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
            await self._stream.send(held, more=more)

    def abort(self) -> None:
        """Cuts the connection."""
        self._stream.abort()

    async def answer(self, status: int, text: str, headers: Mapping[str, str] | None = None) -> None:
        """Sends a complete response."""
        body = text.encode("utf-8", "replace")
        fields = {"content-type": TEXT, "content-length": str(len(body)), **(headers or {})}
        await self.start(status, fields)
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
    """Serves the connections of one port: passes each request to `handler`, and turns its errors into responses."""

    def __init__(self, handler: Handler, limits: Limits, explain: Explain = in_plain_text) -> None:
        self._handler = handler
        self._limits = limits
        self._explain = explain

    async def serve(self, seat: Seat, arrived: bytes = b"") -> None:
        """Serves one connection, request by request, until either side ends it.

        `arrived` are bytes that the caller has read from it.
        """
        guest, client = seat.socket, seat.client
        stream = SocketStream(guest, self._limits.idle_timeout)
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
                    await _linger(guest, stream)
                    return
                while await self._exchange(connection, stream, seat):
                    connection.start_next_cycle()
                    # Pipelined requests are answered without a wait in between, so other tasks run here.
                    await asyncio.sleep(0)
            if connection.their_state is not h11.CLOSED:
                await _linger(guest, stream)
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
                request = await _next_event(connection, stream)
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
                await exchange.answer(error.status, text, {"content-type": content_type, **error.headers})
        except h11.RemoteProtocolError as error:
            malformed = HttpError(HTTPStatus(error.error_status_hint), "malformed request\n")
            await self._answer_unread(connection, stream, malformed, target)
            return False
        if exchange is not None and exchange.body_held_back:
            return False
        return await _rest_of_request(connection, stream)

    async def _answer_unread(
        self, connection: h11.Connection, stream: SocketStream, error: HttpError, target: bytes = b""
    ) -> None:
        if connection.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        content_type, text = self._explain(error, target)
        body = text.encode()
        head = [("content-type", content_type), ("content-length", str(len(body))), ("connection", "close")]
        response = h11.Response(status_code=error.status, headers=head, reason=error.status.phrase.encode())
        for event in (response, h11.Data(data=body), h11.EndOfMessage()):
            await stream.send(connection.send(event) or b"")


async def _next_event(connection: h11.Connection, stream: SocketStream) -> h11.Event | type[h11.PAUSED]:
    # One read of the socket can hold ten thousand chunks of one byte, so other tasks must run between them.
    await stream.take_turns()
    while (event := connection.next_event()) is h11.NEED_DATA:
        connection.receive_data(await stream.receive())
    return event  # type: ignore[return-value]


async def _rest_of_request(connection: h11.Connection, stream: SocketStream) -> bool:
    """Reads at most LINGER_BYTES of the body that the handler left; returns whether the connection can be reused."""
    remaining = LINGER_BYTES
    # After `connection: close` nobody waits for the rest.
    while connection.their_state is h11.SEND_BODY and connection.our_state is h11.DONE and remaining > 0:
        event = await _next_event(connection, stream)
        remaining -= len(event.data) if isinstance(event, h11.Data) else 0
    return connection.our_state is h11.DONE and connection.their_state is h11.DONE


async def _linger(guest: socket.socket, stream: SocketStream) -> None:
    """Ends our side and reads on briefly, because closing with unread bytes would reset the client's response away."""
    with contextlib.suppress(OSError, TimeoutError, IdleTimeout):
        guest.shutdown(socket.SHUT_WR)
        drained = 0
        async with asyncio.timeout(LINGER_SECONDS):
            while drained < LINGER_BYTES and (data := await stream.receive()):
                drained += len(data)
