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

from appliance.core.errors import GitmirrorError, NotServing, UsageError
from appliance.core.observability.event_stream import EventStream
from appliance.core.process.control import WATCH, Tell, short_name

log = logging.getLogger(__name__)

LONGEST_LINE = 2**18
"""The most bytes in one request: `refresh` with the names of 2,000 repositories has 70 KB. A megabyte of nested JSON
blocks the loop for a tenth of a second."""

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
            line = await _read_line(reader)
            work = asyncio.create_task(self._serve(line, writer))
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
                    writer.write(event.json + b"\n")

    async def _serve(self, line: bytes | None, writer: asyncio.StreamWriter) -> None:
        try:
            command, arguments = _read_request(line)
        except GitmirrorError as error:
            _send(writer, _failure(error))
            return
        if command == WATCH:
            await self._stream(writer)
        else:
            await self._answer(command, arguments, writer)

    async def _answer(self, command: str, arguments: Mapping[str, Any], writer: asyncio.StreamWriter) -> None:
        try:
            handler = self._handlers.get(command)
            if handler is None:
                raise GitmirrorError(
                    f"serve does not know the command {command!r}",
                    hint="serve and this file are of different versions: restart serve",
                )
            result = await handler(arguments, lambda text: _send(writer, {"progress": text}))
            _send(writer, {"result": result})
        except GitmirrorError as error:
            _send(writer, _failure(error))
        except asyncio.CancelledError:
            _send(writer, _failure(NotServing("serve is stopping", hint="try again when it has started again")))
            raise
        except Exception as error:
            log.exception("the command %r failed", command)
            bug = GitmirrorError(f"serve failed to run this command: {error!r}", hint="see the log of serve")
            _send(writer, _failure(bug))


def _send(writer: asyncio.StreamWriter, document: Mapping[str, Any]) -> None:
    writer.write(json.dumps(document).encode() + b"\n")


def _failure(error: GitmirrorError) -> dict[str, Any]:
    return {"error": {"message": error.message, "hint": error.hint, "exit_code": error.exit_code}}


async def _read_line(reader: asyncio.StreamReader) -> bytes | None:
    """The request; None if it is longer than LONGEST_LINE. Reads all of it, or the client would not read the error."""
    is_too_long = False
    while True:
        try:
            line = await reader.readuntil()
        except asyncio.IncompleteReadError as error:
            line = error.partial
        except asyncio.LimitOverrunError as error:
            is_too_long = True
            await reader.readexactly(error.consumed)
            continue
        return None if is_too_long else line


def _read_request(line: bytes | None) -> tuple[str, dict[str, Any]]:
    """The command of a request and its arguments. Raises UsageError."""
    if line is None:
        raise UsageError(f"the request has more than {LONGEST_LINE} bytes", hint="name fewer repositories at once")
    try:
        request = json.loads(line or b"{}")
    except (ValueError, RecursionError):
        request = None
    command = request.get("command", "") if isinstance(request, dict) else None
    arguments = request.get("arguments", {}) if isinstance(request, dict) else None
    if not isinstance(command, str) or not isinstance(arguments, dict):
        raise UsageError(
            "the request is not one line of JSON with a command and its arguments",
            hint="serve and this file are of different versions: restart serve",
        )
    return command, arguments
