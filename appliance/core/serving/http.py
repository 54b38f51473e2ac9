"""The HTTP ports, guests' and admin: plain answers to GET and HEAD, one connection a request, by h11."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import h11

log = logging.getLogger(__name__)

REQUEST_BYTES = 16384


@dataclass(frozen=True)
class Answer:
    """A whole answer: `status`, its text, and the content type."""

    status: int
    text: str
    content_type: str = "text/plain; charset=utf-8"


Route = Callable[[], Answer]


class HttpListener:
    """Answers `routes` by exact path on listening sockets; everything else is a 404."""

    def __init__(self, routes: Mapping[str, Route], *, request_timeout: float) -> None:
        self._routes = dict(routes)
        self._timeout = request_timeout
        self._servers: list[asyncio.Server] = []

    async def start(self, sockets: list[socket.socket]) -> None:
        """Accepts on listening sockets."""
        for listening in sockets:
            self._servers.append(await asyncio.start_server(self._guest, sock=listening, limit=REQUEST_BYTES))

    async def stop(self) -> None:
        """Stops accepting."""
        for server in self._servers:
            server.close()

    async def _guest(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=REQUEST_BYTES)
        try:
            async with asyncio.timeout(self._timeout):
                try:
                    answer, head = await self._answer(connection, reader)
                except h11.RemoteProtocolError as error:
                    answer, head = Answer(error.error_status_hint, "malformed request\n"), False
                writer.write(_rendered(connection, answer, head))
                await writer.drain()
        except (OSError, TimeoutError):
            log.debug("an HTTP client left or was too slow")
        except Exception:
            log.exception("an HTTP request failed")
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _answer(self, connection: h11.Connection, reader: asyncio.StreamReader) -> tuple[Answer, bool]:
        while (event := connection.next_event()) is h11.NEED_DATA:
            connection.receive_data(await reader.read(REQUEST_BYTES))
        if not isinstance(event, h11.Request):
            raise ConnectionResetError
        path = event.target.decode("ascii", "replace").partition("?")[0]
        if event.method not in (b"GET", b"HEAD"):
            return Answer(405, "only GET and HEAD are answered\n"), False
        route = self._routes.get(path)
        return route() if route else Answer(404, "not mirrored here\n"), event.method == b"HEAD"


def _rendered(connection: h11.Connection, answer: Answer, head: bool) -> bytes:
    body = answer.text.encode()
    headers = [
        ("content-type", answer.content_type),
        ("content-length", str(len(body))),
        ("connection", "close"),
        ("server", "gitmirror"),
    ]
    response = h11.Response(status_code=answer.status, headers=headers)
    if connection.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
        return b""
    parts = [connection.send(response)]
    if not head:
        parts.append(connection.send(h11.Data(data=body)))
    parts.append(connection.send(h11.EndOfMessage()))
    return b"".join(part for part in parts if part)
