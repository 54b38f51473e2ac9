"""One guest's connection as bytes in and bytes out, each wait with a deadline."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from typing import Protocol

CHUNK = 65536
SENDFILE_CHUNK = 2**21
"""Bytes given to one sendfile: it blocks the loop when they must come from the disk, and two MiB do so only shortly."""
TURN = 16
"""Reads of a socket, or pieces of what was read, after which others get their turn, when none of them had to wait."""


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
        self._until: float | None = None
        self._unbroken = 0

    async def take_turns(self) -> None:
        """Lets others go on after each TURN pieces of work. A guest that always has more never has anybody wait."""
        self._unbroken += 1
        if self._unbroken >= TURN:
            self._unbroken = 0
            await asyncio.sleep(0)

    @contextlib.contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Receiving raises IdleTimeout once the block has taken so many seconds, however often something came.

        One number, in place of a timer of asyncio's for each of the requests that a fetch is made of.
        """
        before = self._until
        self._until = self._loop.time() + seconds
        try:
            yield
        finally:
            self._until = before

    async def receive(self, most: int = CHUNK) -> bytes:
        """What has come, at most so many bytes; empty at the end. Raises IdleTimeout, OSError."""
        while True:
            left = self._idle
            if self._until is not None:
                left = self._until - self._loop.time()
                if left <= 0:
                    raise IdleTimeout
                left = left if self._idle is None else min(left, self._idle)
            try:
                data = self._socket.recv(most)
            except (BlockingIOError, InterruptedError):
                self._acknowledge()
                await self._ready(self._loop.add_reader, self._loop.remove_reader, left)
                self._unbroken = 0
            else:
                await self.take_turns()
                return data

    async def send(self, data: bytes, *, more: bool = False) -> None:
        """Sends all of it; with `more`, in one packet with what is sent next. Raises IdleTimeout, OSError."""
        view = memoryview(data)
        while view:
            try:
                view = view[self._socket.send(view, socket.MSG_MORE if more else 0) :]
            except (BlockingIOError, InterruptedError):
                await self._ready(self._loop.add_writer, self._loop.remove_writer, self._idle)

    async def send_file(self, file: int, offset: int, count: int) -> None:
        """Sends a part of an open file by sendfile. Raises IdleTimeout, OSError, also when the file is too short."""
        transfer = _FileTransfer(self._socket.fileno(), file, offset, count, self._loop)
        if not transfer.advance():
            await transfer.finish(self._idle)

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

    async def _ready(self, add: Callable[..., None], remove: Callable[[int], bool], idle: float | None) -> None:
        # By hand, without asyncio.timeout and a closure: this is the hot path of every fetch.
        future: asyncio.Future[None] = self._loop.create_future()
        descriptor = self._socket.fileno()
        add(descriptor, _resolve, future)
        timer = None if idle is None else self._loop.call_later(idle, _expire, future)
        try:
            await future
        finally:
            if timer is not None:
                timer.cancel()
            with contextlib.suppress(ValueError):
                remove(descriptor)


class _FileTransfer:
    """A part of a file on its way to a socket: the loop's own callback sends, and its task wakes once, at the end.

    With a task that woke for each piece that the socket took, a hot hydration of 24 MB cost the server 16.9 ms of
    processor time, and 10.0 without.
    """

    def __init__(self, descriptor: int, file: int, offset: int, count: int, loop: asyncio.AbstractEventLoop) -> None:
        self._descriptor = descriptor
        self._file = file
        self._offset = offset
        self._end = offset + count
        self._loop = loop
        self._moved_at = 0.0

    def advance(self) -> bool:
        """Sends what goes now, SENDFILE_CHUNK at most, so that others get their turn. Whether that was the rest."""
        if self._offset < self._end:
            size = min(self._end - self._offset, SENDFILE_CHUNK)
            try:
                sent = os.sendfile(self._descriptor, self._file, self._offset, size)
            except (BlockingIOError, InterruptedError):
                return False
            if sent == 0:
                raise ConnectionAbortedError("the answer's file is shorter than it was")
            self._offset += sent
        return self._offset >= self._end

    async def finish(self, idle: float | None) -> None:
        """Sends the rest; raises IdleTimeout when the guest takes nothing for `idle` seconds."""
        future: asyncio.Future[None] = self._loop.create_future()
        self._moved_at = self._loop.time()
        self._loop.add_writer(self._descriptor, self._on_writable, future)
        timer = None if idle is None else self._loop.create_task(self._watch(future, idle))
        try:
            await future
        finally:
            if timer is not None:
                timer.cancel()
            with contextlib.suppress(ValueError):
                self._loop.remove_writer(self._descriptor)

    def _on_writable(self, future: asyncio.Future[None]) -> None:
        if future.done():
            return
        self._moved_at = self._loop.time()
        try:
            done = self.advance()
        except OSError as error:
            future.set_exception(error)
            return
        if done:
            future.set_result(None)

    async def _watch(self, future: asyncio.Future[None], idle: float) -> None:
        while (left := self._moved_at + idle - self._loop.time()) > 0:
            await asyncio.sleep(left)
        _expire(future)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _expire(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_exception(IdleTimeout())
