"""Runs an ASGI application on our HTTP connections, so that one server has all limits (asgi.readthedocs.io, HTTP 2.4).

Only what HTTP needs is here: no WebSocket, no lifespan, no extensions.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import unquote_to_bytes

import h11

from appliance.core.serving.net.http import Exchange, Explain, HttpError, in_plain_text
from appliance.core.serving.net.streams import IdleTimeout

FAREWELL = 2.0
"""Seconds that a client has to read why its request ends early."""
Message = MutableMapping[str, Any]
Application = Callable[
    [MutableMapping[str, Any], Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]


class AsgiHandler:
    """Answers exchanges with `application`. `state` is in each request's scope, as `request.state` in Starlette.

    A request whose client disconnects is cancelled, because nobody waits for its response. A client that ends only its
    sending side has disconnected too: over TCP, the two look the same. `explain` words errors that the application
    does not see.
    """

    def __init__(self, application: Application, explain: Explain = in_plain_text, **state: Any) -> None:
        self._application = application
        self.explain = explain
        self._state = state

    async def handle(self, exchange: Exchange) -> None:
        """Answers one request. Raises HttpError, IdleTimeout, OSError, and whatever the application raises."""
        call = _Call(exchange)
        if not exchange.has_body:
            # Only one task may read from a connection, and from here on `left` waits for it to end.
            await exchange.end_request()
            call.is_body_read.set()
        # Otherwise it would count as idle when connections are scarce, and make room for another.
        exchange.seat.begin()
        answering = asyncio.ensure_future(self._application(self._scope(exchange), call.receive, call.send))
        leaving = asyncio.ensure_future(call.left())
        try:
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            exchange.seat.end()
            leaving.cancel()
            if not answering.done():
                # The application may still say why it ends early, to a client that reads it.
                answering.cancel()
                await asyncio.wait({answering}, timeout=FAREWELL)
                if not answering.done():
                    exchange.abort()
            await asyncio.wait({leaving, answering})
            # Otherwise asyncio complains that nobody saw it.
            error = None if answering.cancelled() else answering.exception()
        if call.failure is not None:
            raise call.failure
        if answering.cancelled():
            raise ConnectionAbortedError("the client disconnected before it was answered")
        if error is not None:
            raise error
        if not call.is_finished:
            exchange.abort()

    def _scope(self, exchange: Exchange) -> dict[str, Any]:
        target, _, query = exchange.target.partition(b"?")
        path = unquote_to_bytes(target)
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": exchange.method,
            "scheme": "http",
            # File names in a repository may be any bytes.
            "path": path.decode("utf-8", "surrogateescape"),
            "raw_path": target,
            "root_path": "",
            "query_string": query,
            "headers": exchange.raw_headers,
            "client": (exchange.client, exchange.seat.port),
            "server": None,
            "state": dict(self._state),
        }


class _Call:
    """One request as the application sees it.

    `failure` is why its body cannot be read or its response cannot be sent. To the application, the client has
    disconnected then.
    """

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self.is_body_read = asyncio.Event()
        self._is_end_passed_on = False
        self._is_gone = asyncio.Event()
        self.is_finished = False
        self.failure: Exception | None = None

    async def receive(self) -> Message:
        """The next piece of the body; after its end, waits for the client to disconnect."""
        if self._is_end_passed_on:
            await self._is_gone.wait()
            return {"type": "http.disconnect"}
        try:
            piece = await self._exchange.receive()
        except (HttpError, IdleTimeout, OSError, h11.RemoteProtocolError) as error:
            self.failure = error
            return {"type": "http.disconnect"}
        if not piece:
            self.is_body_read.set()
            self._is_end_passed_on = True
        return {"type": "http.request", "body": piece, "more_body": bool(piece)}

    async def left(self) -> None:
        """Returns when the client disconnects. While the body is being read, `receive` is the one who notices."""
        await self.is_body_read.wait()
        with contextlib.suppress(OSError):
            await self._exchange.hung_up()
        self._is_gone.set()

    async def send(self, message: Message) -> None:
        """Sends the head or a piece of the body. Raises OSError if the client has disconnected."""
        try:
            if self.failure is not None or self._is_gone.is_set():
                raise ConnectionAbortedError("the client disconnected before it was answered")
            await self._send(message)
        except (IdleTimeout, OSError) as error:
            self.failure = self.failure or error
            raise ConnectionAbortedError("the client takes no more of its response") from error

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in message["headers"]}
            await self._exchange.start(message["status"], headers)
            return
        if self._exchange.method != "HEAD":
            await self._exchange.send(message.get("body", b""))
        if not message.get("more_body", False):
            self.is_finished = True
            await self._exchange.finish()
