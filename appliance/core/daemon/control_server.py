"""Answers the other commands on the unix socket of `serve` (process/control.py describes the protocol)."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from appliance.core.errors import GitmirrorError
from appliance.core.observability.event_stream import EventStream
from appliance.core.process.control import WATCH, Tell, short_name

log = logging.getLogger(__name__)

LONGEST_LINE = 64 * 2**20
"""The most bytes in one request."""

Handler = Callable[[Mapping[str, Any], Tell], Awaitable[Any]]


class ControlServer:
    """Answers commands on the socket at `path`, mode 0660."""

    def __init__(self, path: Path, handlers: Mapping[str, Handler], stream: EventStream | None = None) -> None:
        self._path = path
        self._handlers = dict(handlers)
        self._event_stream = stream or EventStream()
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Binds the socket and replaces one that a killed `serve` left. Raises GitmirrorError."""
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            self._path.unlink(missing_ok=True)
            with short_name(self._path) as name:
                previous = os.umask(0o117)
                try:
                    listening.bind(name)
                finally:
                    os.umask(previous)
            self._server = await asyncio.start_unix_server(self._client, sock=listening, limit=LONGEST_LINE)
        except OSError as error:
            listening.close()
            raise GitmirrorError(f"the control socket {self._path} cannot be created: {error}") from error

    @property
    def is_open(self) -> bool:
        """Whether commands can connect."""
        return self._server is not None

    async def stop(self) -> None:
        """Closes the socket and cancels the commands that are running."""
        if self._server is not None:
            self._server.close()
        for client in list(self._clients):
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        self._path.unlink(missing_ok=True)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        try:
            request = json.loads(await reader.readline() or b"{}")
            watches = isinstance(request, dict) and request.get("command") == WATCH
            work = asyncio.create_task(self._stream(writer) if watches else self._answer(request, writer))
            hangup = asyncio.create_task(reader.read(1))
            try:
                # When the client hangs up, its command is cancelled, because nobody waits for the result.
                await asyncio.wait({work, hangup}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task_to_end in (work, hangup):
                    task_to_end.cancel()
                await asyncio.gather(work, hangup, return_exceptions=True)
            await writer.drain()
        except (OSError, ValueError) as error:
            log.debug("a control connection ended: %s", error)
        finally:
            self._clients.discard(task)
            writer.close()

    async def _stream(self, writer: asyncio.StreamWriter) -> None:
        with self._event_stream.watching() as subscription:
            writer.write(b'{"watching": true}\n')
            while True:
                await writer.drain()
                for event in await subscription.take():
                    writer.write(json.dumps(event).encode() + b"\n")

    async def _answer(self, request: Any, writer: asyncio.StreamWriter) -> None:
        def send(document: Mapping[str, Any]) -> None:
            writer.write(json.dumps(document).encode() + b"\n")

        try:
            handler = self._handlers.get(request.get("command", ""))
            if handler is None:
                raise GitmirrorError(
                    f"serve does not know the command {request.get('command')!r}",
                    hint="serve and this file are of different versions: restart serve",
                )
            result = await handler(request.get("arguments", {}), lambda text: send({"progress": text}))
            send({"result": result})
        except GitmirrorError as error:
            send({"error": {"message": error.message, "hint": error.hint, "exit_code": error.exit_code}})
        except asyncio.CancelledError:
            send(
                {
                    "error": {
                        "message": "serve is stopping",
                        "hint": "try again when it has started again",
                        "exit_code": 4,
                    }
                }
            )
            raise
        except Exception as error:
            log.exception("the command %r failed", request)
            send(
                {
                    "error": {
                        "message": f"serve failed to run this command: {error!r}",
                        "hint": "see the log of serve",
                        "exit_code": 1,
                    }
                }
            )
