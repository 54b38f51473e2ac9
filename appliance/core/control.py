"""The unix socket between `serve` and the other commands: one JSON document a line.

A request is `{"command": NAME, "arguments": {...}}`. The answer is any number of `{"progress": TEXT}` and then
one `{"result": ...}` or `{"error": {"message", "hint", "exit_code"}}`. The command `watch` is answered with one
`{"watching": true}` and then an event a line (see feed.py), until either side hangs up.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from appliance.core.errors import GitmirrorError, NotServing
from appliance.core.layout import Layout
from appliance.core.observability.event_stream import EventStream
from appliance.core.process.owner import SERVE, OwnerInfo, find_owner

log = logging.getLogger(__name__)

LONGEST_LINE = 64 * 2**20

WATCH = "watch"

Tell = Callable[[str], None]
Handler = Callable[[Mapping[str, Any], Tell], Awaitable[Any]]


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """A name for `path` of a few bytes: a unix socket's is limited to 107, and a state directory's may be longer."""
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


class ControlServer:
    """Answers commands on the socket at `path`, mode 0660."""

    def __init__(self, path: Path, handlers: Mapping[str, Handler], feed: EventStream | None = None) -> None:
        self._path = path
        self._handlers = dict(handlers)
        self._feed = feed or EventStream()
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Binds the socket, in place of one that a killed serve left. Raises GitmirrorError."""
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            self._path.unlink(missing_ok=True)
            with _short(self._path) as name:
                previous = os.umask(0o117)
                try:
                    listening.bind(name)
                finally:
                    os.umask(previous)
            self._server = await asyncio.start_unix_server(self._client, sock=listening, limit=LONGEST_LINE)
        except OSError as error:
            listening.close()
            raise GitmirrorError(f"the control socket {self._path} cannot be made: {error}") from error

    @property
    def is_open(self) -> bool:
        """Whether commands can reach it."""
        return self._server is not None

    async def stop(self) -> None:
        """Closes the socket and ends the commands under way."""
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
            gone = asyncio.create_task(reader.read(1))
            try:
                # A command that was interrupted is not gone on with: nobody waits for it any more.
                await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for each in (work, gone):
                    each.cancel()
                await asyncio.gather(work, gone, return_exceptions=True)
            await writer.drain()
        except (OSError, ValueError) as error:
            log.debug("a control connection ended: %s", error)
        finally:
            self._clients.discard(task)
            writer.close()

    async def _stream(self, writer: asyncio.StreamWriter) -> None:
        with self._feed.watching() as watcher:
            writer.write(b'{"watching": true}\n')
            while True:
                await writer.drain()
                for event in await watcher.take():
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
                        "hint": "try again when it is back",
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
                        "message": f"serve failed at this: {error!r}",
                        "hint": "see its log",
                        "exit_code": 1,
                    }
                }
            )


def is_serving(layout: Layout) -> bool:
    """Whether a `serve` owns the state directory."""
    owner = find_owner(layout)
    return owner is not None and owner.role == SERVE


class Watch:
    """The events of a running `serve`, from the moment this is made. Iterating ends when either side hangs up.

    Making it raises NotServing. `close` may be called from another thread, and ends the iteration there.
    """

    def __init__(self, layout: Layout) -> None:
        self._connection, self._owner = _connect(layout, QUICK)
        try:
            self._connection.sendall(json.dumps({"command": WATCH}).encode() + b"\n")
            self._lines = self._connection.makefile("rb")
            answered = json.loads(self._lines.readline() or b"{}")
        except (OSError, ValueError) as error:
            self._connection.close()
            raise _unanswered(self._owner, error) from None
        if not answered.get("watching"):
            self._connection.close()
            raise NotServing("serve is of another version and tells no events", hint="restart serve")
        self._connection.settimeout(None)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Each event: `{event, at, repo, …}`. Half a line, of a serve that was killed, is the end too."""
        with contextlib.suppress(OSError, ValueError):
            for line in self._lines:
                yield json.loads(line)

    def close(self) -> None:
        """Hangs up."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()


QUICK = 30.0
"""Seconds that a serve which is alive needs at most to answer what it only has to look up."""


def call(
    layout: Layout, command: str, *, on_progress: Tell | None = None, timeout: float | None = None, **arguments: Any
) -> Any:
    """Asks `serve` and waits for its answer, `timeout` seconds at most. Raises NotServing, or what serve answered."""
    connection, owner = _connect(layout, timeout)
    with connection:
        try:
            connection.sendall(json.dumps({"command": command, "arguments": arguments}).encode() + b"\n")
            with connection.makefile("rb") as answers:
                for line in answers:
                    answer = json.loads(line)
                    if "progress" in answer:
                        if on_progress is not None:
                            on_progress(answer["progress"])
                    elif "error" in answer:
                        raise GitmirrorError(**answer["error"])
                    else:
                        return answer["result"]
        except OSError as error:
            raise _unanswered(owner, error) from None
        except ValueError:
            # Half a line: serve was killed while it wrote.
            pass
    raise NotServing(f"serve (process {owner.pid}) ended before it answered", hint="see its log")


def _connect(layout: Layout, timeout: float | None) -> tuple[socket.socket, OwnerInfo]:
    owner = find_owner(layout)
    if owner is None or owner.role != SERVE:
        raise NotServing(f"serve is not running on {layout.state}", hint="start it, or name its directory with --state")
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(timeout)
    try:
        with _short(Path(owner.control)) as name:
            connection.connect(name)
    except OSError as error:
        connection.close()
        raise _unanswered(owner, error) from None
    return connection, owner


def _unanswered(owner: OwnerInfo, error: Exception) -> NotServing:
    why = getattr(error, "strerror", None) or error
    return NotServing(
        f"serve (process {owner.pid}) does not answer on {owner.control}: {why}",
        hint="it may be starting or stopping; its control socket is for its user and group only",
    )
