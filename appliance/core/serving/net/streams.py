"""One guest's connection: bytes in and bytes out, each wait with a deadline."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
from collections.abc import Callable, Iterator
from typing import Protocol

from appliance.core.serving.net.sockets import unsent_bytes

CHUNK = 65536
SENDFILE_CHUNK = 2**21
"""Bytes per sendfile call. It blocks the loop while the bytes are read from disk, so two MiB bound that time."""
TURN = 16
"""Reads of a socket, or pieces of what was read, that never had to wait, after which other tasks run."""

LOOK_EVERY = 0.2
"""Seconds between two looks whether a peer that is sent nothing has hung up."""


class IdleTimeout(Exception):
    """A guest neither sent nor read anything for too long."""


class Sink(Protocol):
    """The destination of a response."""

    async def send(self, data: bytes) -> None:
        """Sends all of it. Raises IdleTimeout, OSError."""
        ...

    async def send_file(self, file: int, offset: int, count: int) -> None:
        """Sends `count` bytes of an open file from `offset`, without copying them through this process."""
        ...


class SocketStream:
    """A non-blocking stream socket. A wait in which no byte moves may last `idle` seconds, or forever if None."""

    def __init__(self, connection: socket.socket, idle: float | None) -> None:
        self._socket = connection
        self._idle = idle
        self._loop = asyncio.get_running_loop()
        self._is_tcp = connection.family in (socket.AF_INET, socket.AF_INET6)
        self._until: float | None = None
        self._unbroken = 0
        self.sent = 0
        """Bytes that the kernel has taken for the peer since this stream was made."""

    @property
    def idle(self) -> float | None:
        """Seconds that a wait in which no byte moves may last; None: without a limit."""
        return self._idle

    @property
    def unsent(self) -> int:
        """Bytes that were sent and that the peer has not acknowledged."""
        return unsent_bytes(self._socket.fileno())

    @contextlib.contextmanager
    def noticing_hang_up(self) -> Iterator[None]:
        """Raises ConnectionResetError in the block soon after the peer has hung up, whatever is waited for there.

        For work that sends nothing for long: only what is sent finds out otherwise. A peer that has only ended its
        sending side still reads. Over TCP both look alike until the peer refuses what it is sent, so something has to
        be sent now and then.
        """
        task, poll = asyncio.current_task(), select.poll()
        assert task is not None
        cancelling, gone = task.cancelling(), False
        timer: asyncio.TimerHandle | None = None
        poll.register(self._socket.fileno(), 0)

        def look() -> None:
            nonlocal gone, timer
            gone = bool(poll.poll(0))
            if gone:
                task.cancel()
            else:
                timer = self._loop.call_later(LOOK_EVERY, look)

        timer = self._loop.call_later(LOOK_EVERY, look)
        try:
            yield
        except asyncio.CancelledError:
            if gone and task.uncancel() <= cancelling:
                raise ConnectionResetError("the guest hung up before it had its answer") from None
            raise
        finally:
            timer.cancel()

    async def take_turns(self) -> None:
        """Lets other tasks run after each TURN pieces of work, because a busy guest never makes us wait."""
        self._unbroken += 1
        if self._unbroken >= TURN:
            self._unbroken = 0
            await asyncio.sleep(0)

    @contextlib.contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Makes `receive` raise IdleTimeout after the block has taken `seconds`, even if bytes keep arriving.

        It only sets a number, because an asyncio timer for each request of a fetch would cost more.
        """
        before = self._until
        self._until = self._loop.time() + seconds
        try:
            yield
        finally:
            self._until = before

    async def receive(self, most: int = CHUNK) -> bytes:
        """The bytes that have arrived, at most `most`; empty at the end. Raises IdleTimeout, OSError."""
        while True:
            wait = self._idle
            if self._until is not None:
                wait = self._until - self._loop.time()
                if wait <= 0:
                    raise IdleTimeout
                wait = wait if self._idle is None else min(wait, self._idle)
            try:
                data = self._socket.recv(most)
            except (BlockingIOError, InterruptedError):
                self._acknowledge()
                await self._ready(self._loop.add_reader, self._loop.remove_reader, wait)
                self._unbroken = 0
            else:
                await self.take_turns()
                return data

    async def arrives(self) -> bytes:
        """Waits without a limit for the next bytes and returns them; empty at the end. Raises OSError."""
        while True:
            try:
                return self._socket.recv(CHUNK)
            except (BlockingIOError, InterruptedError):
                await self._ready(self._loop.add_reader, self._loop.remove_reader, None)

    async def send(self, data: bytes, *, more: bool = False) -> None:
        """Sends all of it; `more` lets it share a packet with the next bytes. Raises IdleTimeout, OSError."""
        view = memoryview(data)
        while view:
            try:
                taken = self._socket.send(view, socket.MSG_MORE if more else 0)
                self.sent += taken
                view = view[taken:]
            except (BlockingIOError, InterruptedError):
                await self._writable()

    async def send_file(self, file: int, offset: int, count: int) -> None:
        """Sends a part of an open file by sendfile. Raises IdleTimeout; OSError, also if the file is too short."""
        transfer = _FileTransfer(self, self._socket.fileno(), file, offset, count, self._loop)
        if not transfer.advance():
            await transfer.finish(self._idle)

    async def _writable(self) -> None:
        """Waits until the socket takes more. That needs a third of its buffer to be free, which a slow guest may take
        longer for than `idle` seconds although it reads all the time."""
        while True:
            before = unsent_bytes(self._socket.fileno())
            try:
                await self._ready(self._loop.add_writer, self._loop.remove_writer, self._idle)
                return
            except IdleTimeout:
                if unsent_bytes(self._socket.fileno()) >= before:
                    raise

    async def end(self) -> None:
        """Ends the sending side. More can still be received."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def abort(self) -> None:
        """Cuts the connection, so that every wait for it ends at once."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _acknowledge(self) -> None:
        """Acknowledges received bytes now. The kernel forgets the option, so this sets it before each wait.

        git writes a request over git:// packet by packet. Nagle's algorithm on its side holds the second packet back
        until the first is acknowledged, which costs 40 ms a request: a hot hydration of a small repository took 56 ms
        instead of 12.
        """
        if self._is_tcp:
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    async def _ready(self, add: Callable[..., None], remove: Callable[[int], bool], idle: float | None) -> None:
        # Uses no asyncio.timeout and no closure, because this is the hot path of every fetch.
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
    """Sends a part of a file to a socket. A callback of the loop sends, and the task wakes only once, at the end.

    When the task woke for each piece that the socket accepted, a hot hydration of 24 MB cost the server 16.9 ms of
    processor time; now it costs 10.0 ms.
    """

    def __init__(
        self,
        stream: SocketStream,
        descriptor: int,
        file: int,
        offset: int,
        count: int,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._stream = stream
        self._descriptor = descriptor
        self._file = file
        self._offset = offset
        self._end = offset + count
        self._loop = loop
        self._moved_at = 0.0

    def advance(self) -> bool:
        """Sends at most SENDFILE_CHUNK bytes without waiting. Returns whether everything is sent."""
        if self._offset < self._end:
            size = min(self._end - self._offset, SENDFILE_CHUNK)
            try:
                sent = os.sendfile(self._descriptor, self._file, self._offset, size)
            except (BlockingIOError, InterruptedError):
                return False
            if sent == 0:
                raise ConnectionAbortedError("the file of the response was truncated")
            self._offset += sent
            self._stream.sent += sent
        return self._offset >= self._end

    async def finish(self, idle: float | None) -> None:
        """Sends the rest. Raises OSError, and IdleTimeout if the guest reads nothing for `idle` seconds."""
        future: asyncio.Future[None] = self._loop.create_future()
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
        while True:
            before, since = unsent_bytes(self._descriptor), self._loop.time()
            await asyncio.sleep(idle)
            # If the socket took nothing, a guest that reads too little for it to take more still shows in what is
            # unsent. Both are looked at over the same time, or a guest that read all along could be cut off.
            if self._moved_at < since and unsent_bytes(self._descriptor) >= before:
                _expire(future)
                return


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _expire(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_exception(IdleTimeout())
