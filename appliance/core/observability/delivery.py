"""Delivers a document to a command's stdin or by a POST, each with a deadline. Both can be cancelled."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Mapping, Sequence
from urllib.parse import SplitResult, urlsplit

import h11

from appliance.core.errors import GitmirrorError
from appliance.core.process.children import Children

DEADLINE = 30.0
"""Seconds that one delivery may take."""
STDERR = 2
"""The descriptor of this process's stderr. Commands write there, so their errors appear in the log of `serve`."""
MOST_RESPONSE = 65536
"""The most bytes of a response that are read. Only its status is used."""


class OutletError(GitmirrorError):
    """A document could not be delivered."""


async def run_command(children: Children, argv: Sequence[str], document: bytes, env: Mapping[str, str]) -> None:
    """Runs a command with `document` on its stdin and waits at most DEADLINE seconds for it. Raises OutletError."""
    stdin = os.memfd_create("gitmirror-document", os.MFD_CLOEXEC)
    try:
        os.write(stdin, document)
        os.lseek(stdin, 0, os.SEEK_SET)
        child = children.start(argv, env=env, stdin=stdin, stderr=STDERR)
    except OSError as error:
        raise OutletError(f"{argv[0]} cannot be started: {error.strerror}") from None
    finally:
        os.close(stdin)
    try:
        async with asyncio.timeout(DEADLINE):
            code = await child.wait()
    except TimeoutError:
        raise OutletError(f"{argv[0]} took longer than {DEADLINE:g}s and was ended") from None
    finally:
        await asyncio.shield(child.end())
    if code:
        raise OutletError(f"{argv[0]} ended with code {code}")


async def post(url: str, document: bytes, content_type: str = "application/json") -> None:
    """Posts a document within DEADLINE seconds. Raises OutletError unless the response is 2xx.

    Redirects are not followed. Errors name only the host, because the path of such a URL is often a secret.
    """
    parts = urlsplit(url)
    try:
        async with asyncio.timeout(DEADLINE):
            status = await _exchange(parts, document, content_type)
    except TimeoutError:
        raise OutletError(f"{parts.hostname} did not respond within {DEADLINE:g}s") from None
    except (OSError, ValueError, h11.ProtocolError) as error:
        raise OutletError(f"{parts.hostname} cannot be reached: {error}") from None
    if not 200 <= status < 300:
        raise OutletError(f"{parts.hostname} answered {status}")


async def _exchange(parts: SplitResult, document: bytes, content_type: str) -> int:
    secure = parts.scheme == "https"
    # Reading the certificate authorities takes 20 ms, too long for the event loop.
    context = await asyncio.to_thread(ssl.create_default_context) if secure else None
    port = parts.port or (443 if secure else 80)
    reader, writer = await asyncio.open_connection(parts.hostname, port, ssl=context)
    try:
        connection = h11.Connection(h11.CLIENT)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        headers = [
            ("Host", parts.netloc),
            ("User-Agent", "gitmirror"),
            ("Content-Type", content_type),
            ("Content-Length", str(len(document))),
            ("Connection", "close"),
        ]
        head = h11.Request(method="POST", target=target, headers=headers)
        for part in (head, h11.Data(data=document), h11.EndOfMessage()):
            writer.write(connection.send(part) or b"")
        await writer.drain()
        budget = MOST_RESPONSE
        while budget > 0:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                data = await reader.read(8192)
                budget -= len(data) or budget
                connection.receive_data(data)
            elif isinstance(event, h11.Response):
                return int(event.status_code)
            elif not isinstance(event, h11.InformationalResponse):
                break
        raise ConnectionResetError("no response came")
    finally:
        writer.close()


async def write_all(descriptor: int, data: bytes) -> None:
    """Writes all of `data` to a non-blocking pipe and waits whenever it is full. Raises BrokenPipeError."""
    view, loop = memoryview(data), asyncio.get_running_loop()
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            writable: asyncio.Future[None] = loop.create_future()
            loop.add_writer(descriptor, _wake, writable)
            try:
                await writable
            finally:
                loop.remove_writer(descriptor)


def _wake(writable: asyncio.Future[None]) -> None:
    if not writable.done():
        writable.set_result(None)
