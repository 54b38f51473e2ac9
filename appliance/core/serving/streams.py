"""One guest's connection as bytes in and bytes out, each wait with a deadline."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from typing import Protocol

CHUNK = 65536
SENDFILE_CHUNK = 2**20
"""Bytes given to one sendfile: it blocks the loop when they must come from the disk, and a MiB does so only shortly."""


class IdleTimeout(Exception):
    """A guest neither sent nor took anything for too long."""


class Sink(Protocol):
    """Where an answer goes."""

    async def send(self, data: bytes) -> None:
        """Sends all of it. Raises IdleTimeout, OSError."""
        ...

    async def send_file(self, file: int, offset: int, count: int) -> None:
        """Sends `count` bytes of an open file from `offset`, without copying them through here."""
        ...


class SocketStream:
    """A non-blocking stream socket. `idle` bounds, in seconds, each wait in which not one byte moves; None does not."""

    def __init__(self, connection: socket.socket, idle: float | None) -> None:
        self._socket = connection
        self._idle = idle
        self._loop = asyncio.get_running_loop()
        self._is_tcp = connection.family in (socket.AF_INET, socket.AF_INET6)

    async def receive(self, most: int = CHUNK) -> bytes:
        """What has come, at most so many bytes; empty at the end. Raises IdleTimeout, OSError."""
        while True:
            try:
                return self._socket.recv(most)
            except (BlockingIOError, InterruptedError):
                self._acknowledge()
                await self._ready(self._loop.add_reader, self._loop.remove_reader)

    async def send(self, data: bytes) -> None:
        """Sends all of it. Raises IdleTimeout, OSError."""
        view = memoryview(data)
        while view:
            try:
                view = view[self._socket.send(view) :]
            except (BlockingIOError, InterruptedError):
                await self._ready(self._loop.add_writer, self._loop.remove_writer)

    async def send_file(self, file: int, offset: int, count: int) -> None:
        """Sends a part of an open file by sendfile. Raises IdleTimeout, OSError, also when the file is too short."""
        end = offset + count
        while offset < end:
            try:
                sent = os.sendfile(self._socket.fileno(), file, offset, min(end - offset, SENDFILE_CHUNK))
            except (BlockingIOError, InterruptedError):
                await self._ready(self._loop.add_writer, self._loop.remove_writer)
                continue
            if sent == 0:
                raise ConnectionAbortedError("the answer's file is shorter than it was")
            offset += sent
            # A guest on a fast link never makes us wait, and others want their turn.
            await asyncio.sleep(0)

    async def end(self) -> None:
        """No more is sent; what comes can still be read."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def abort(self) -> None:
        """Cuts the connection: a wait for it ends at once."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _acknowledge(self) -> None:
        """Acknowledges now what came. The kernel forgets that it shall, so it is said before each wait.

        git writes a request over git:// packet by packet, and Nagle's rule at its end holds the second one back until
        the first is acknowledged, which costs 40 ms a request: a hot hydration of a small repository took 56 ms
        instead of 12.
        """
        if self._is_tcp:
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    async def _ready(self, add: Callable[..., None], remove: Callable[[int], bool]) -> None:
        future: asyncio.Future[None] = self._loop.create_future()

        def ready() -> None:
            if not future.done():
                future.set_result(None)

        descriptor = self._socket.fileno()
        add(descriptor, ready)
        try:
            async with asyncio.timeout(self._idle):
                await future
        except TimeoutError:
            raise IdleTimeout from None
        finally:
            with contextlib.suppress(ValueError):
                remove(descriptor)
