"""Runs an ASGI application on our HTTP connections, so that one server has all limits (asgi.readthedocs.io, HTTP 2.3).

Only what HTTP needs is here: no WebSocket, no lifespan, no extensions.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import unquote_to_bytes

from appliance.core.serving.net.http import Exchange

Message = MutableMapping[str, Any]
Application = Callable[
    [MutableMapping[str, Any], Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]


class AsgiHandler:
    """Answers exchanges with `application`. `state` is in each request's scope, as `request.state` in Starlette.

    A request whose client disconnects is cancelled, because nobody waits for its response.
    """

    def __init__(self, application: Application, **state: Any) -> None:
        self._application = application
        self._state = state

    async def handle(self, exchange: Exchange) -> None:
        """Answers one request. Raises HttpError, IdleTimeout, OSError, and whatever the application raises."""
        call = _Call(exchange)
        if not exchange.has_body:
            # Only one task may read from a connection, and from here on `left` waits for it to end.
            await exchange.receive()
            call.is_body_read.set()
        answering = asyncio.ensure_future(self._application(self._scope(exchange), call.receive, call.send))
        leaving = asyncio.ensure_future(call.left())
        try:
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            if not answering.done():
                # The application may still say why it ends early.
                answering.cancel()
            await asyncio.wait({leaving, answering})
        if answering.cancelled():
            raise ConnectionAbortedError("the client disconnected before it was answered")
        answering.result()
        if not call.is_finished:
            exchange.abort()

    def _scope(self, exchange: Exchange) -> dict[str, Any]:
        target, _, query = exchange.target.partition(b"?")
        path = unquote_to_bytes(target)
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
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
    """One request as the application sees it."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self.is_body_read = asyncio.Event()
        self._is_end_passed_on = False
        self._is_gone = asyncio.Event()
        self.is_finished = False

    async def receive(self) -> Message:
        """The next piece of the body; after its end, waits for the client to disconnect."""
        if self._is_end_passed_on:
            await self._is_gone.wait()
            return {"type": "http.disconnect"}
        piece = await self._exchange.receive()
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
        """Sends the head or a piece of the body."""
        if message["type"] == "http.response.start":
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in message["headers"]}
            await self._exchange.start(message["status"], headers)
            return
        if self._exchange.method != "HEAD":
            await self._exchange.send(message.get("body", b""))
        if not message.get("more_body", False):
            self.is_finished = True
            await self._exchange.finish()
