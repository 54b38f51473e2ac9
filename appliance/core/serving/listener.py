"""The git:// port: reads the first packet of each guest, finds the mirror, and relays."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from appliance.core.errors import GitmirrorError
from appliance.core.layout import Layout
from appliance.core.models import Repo
from appliance.core.processes import Children
from appliance.core.serving.catalog import Catalog
from appliance.core.serving.engine import Caller, Engine
from appliance.core.serving.pktline import PacketError, packet, packet_length
from appliance.core.serving.protocol import (
    LARGEST_REQUEST,
    RECEIVE_PACK,
    DaemonRequest,
    RequestError,
    parse_daemon_request,
)
from appliance.core.serving.push import Desk, PushRelay
from appliance.core.serving.relay import Daemon, daemon_child, relay_fetch
from appliance.core.serving.responses import AnswerFailed
from appliance.core.serving.streams import IdleTimeout, SocketStream
from appliance.core.serving.uploadpack import UploadPackError
from appliance.core.serving.v2 import V2Reader

log = logging.getLogger(__name__)

LINGER_SECONDS = 2.0
LINGER_BYTES = 2**20


@dataclass(frozen=True)
class Limits:
    """What guests may take, in seconds and connections."""

    max_clients: int
    queue_timeout: float
    request_timeout: float
    idle_timeout: float
    total_timeout: float

    @property
    def max_connections(self) -> int:
        """Connections at once, those that wait their turn included."""
        return self.max_clients * 4 + 64


@dataclass(frozen=True)
class Serving:
    """What a connection needs of the rest of the appliance."""

    layout: Layout
    children: Children
    daemon: Daemon
    desk: Desk
    engine: Engine
    writing: Callable[[str], AbstractAsyncContextManager[None]]


class GitListener:
    """Serves git:// on listening sockets. `catalog` is replaced when the registry changes."""

    def __init__(self, serving: Serving, limits: Limits) -> None:
        self._serving = serving
        self._limits = limits
        self._places = asyncio.Semaphore(limits.max_clients)
        self._guests: set[asyncio.Task[None]] = set()
        self._accepting: list[asyncio.Task[None]] = []
        self.catalog = Catalog()
        self.served = 0
        self.refused = 0

    @property
    def clients(self) -> int:
        """Connections at this moment, waiting ones included."""
        return len(self._guests)

    def start(self, sockets: list[socket.socket]) -> None:
        """Accepts on listening, non-blocking sockets."""
        self._accepting = [asyncio.create_task(self._accept(each), name="accept git") for each in sockets]

    async def stop(self, drain: float) -> None:
        """Stops accepting, lets what runs finish for `drain` seconds, then ends it."""
        for task in self._accepting:
            task.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        if self._guests:
            log.info("draining %d connections for up to %gs", len(self._guests), drain)
            await asyncio.wait(self._guests, timeout=drain)
        for guest in list(self._guests):
            guest.cancel()
        await asyncio.gather(*self._guests, return_exceptions=True)

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with listening:
            while True:
                try:
                    guest, address = await loop.sock_accept(listening)
                except OSError as error:
                    # Out of descriptors or memory: guests wait in the backlog until some are given back.
                    if error.errno not in (errno.ECONNABORTED, errno.EPROTO):
                        log.error("cannot accept a guest: %s", error)
                        await asyncio.sleep(0.1)
                    continue
                task = asyncio.create_task(self._guest(guest, address))
                self._guests.add(task)
                task.add_done_callback(self._guests.discard)

    async def _guest(self, guest: socket.socket, address: tuple[str, int]) -> None:
        client = _client_name(address)
        with guest:
            try:
                with contextlib.suppress(OSError):
                    # Without it a tiny exchange costs 40 to 100 ms (Nagle against delayed ACK).
                    guest.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                async with asyncio.timeout(self._limits.total_timeout):
                    await self._answer(guest, client, address[1])
            except (RequestError, PacketError) as error:
                self.refused += 1
                log.info("%s refused: %s", client, error)
                with contextlib.suppress(OSError, TimeoutError):
                    await _say_error(guest, str(error))
            except (IdleTimeout, TimeoutError):
                log.info("%s was too slow and is cut off", client)
            except (AnswerFailed, UploadPackError, GitmirrorError) as error:
                # What came of the answer ends with git's own words; cutting it off there is the error that git sees.
                log.info("%s: the fetch failed: %s", client, error or "its answer could not be made")
            except OSError as error:
                log.info("%s: connection ended early: %s", client, error)
            except Exception:
                log.exception("serving %s failed", client)

    async def _answer(self, guest: socket.socket, client: str, port: int) -> None:
        if len(self._guests) > self._limits.max_connections:
            raise RequestError("too many connections; try again later")
        request, repo = await self._read_request(guest)
        try:
            async with asyncio.timeout(self._limits.queue_timeout):
                await self._places.acquire()
        except TimeoutError:
            raise RequestError(
                f"{self._limits.max_clients} guests are being served and no place came free "
                f"in {self._limits.queue_timeout:g}s; try again"
            ) from None
        try:
            await self._relay(guest, client, port, request, repo)
            self.served += 1
        finally:
            self._places.release()

    async def _read_request(self, guest: socket.socket) -> tuple[DaemonRequest, Repo]:
        try:
            async with asyncio.timeout(self._limits.request_timeout):
                size = packet_length(await _read_exactly(guest, 4))
                if not 4 < size <= LARGEST_REQUEST:
                    raise RequestError("malformed request")
                request = parse_daemon_request(await _read_exactly(guest, size - 4))
        except PacketError:
            raise RequestError("malformed request") from None
        except TimeoutError:
            raise RequestError(f"no request came in {self._limits.request_timeout:g}s") from None
        repo = self.catalog.find(request.path)
        if repo is None or not (self._serving.layout.mirror(repo.name) / "HEAD").exists():
            raise RequestError(f"{request.path} is not mirrored here")
        return request, repo

    async def _relay(self, guest: socket.socket, client: str, port: int, request: DaemonRequest, repo: Repo) -> None:
        serving = self._serving
        mirror = serving.layout.mirror(repo.name)
        extra = {"REMOTE_ADDR": client, "REMOTE_PORT": str(port)}
        if request.service != RECEIVE_PACK and request.version == 2:
            await self._serve_v2(guest, client, repo)
            return
        if request.service != RECEIVE_PACK:
            async with daemon_child(serving.children, serving.daemon, mirror, request, extra) as (_, ours):
                await relay_fetch(guest, ours, self._limits.idle_timeout)
            return
        push = serving.desk.open()
        extra |= {"GITMIRROR_PUSH": push, "GITMIRROR_JOURNAL": str(serving.desk.journal(push))}
        async with daemon_child(serving.children, serving.daemon, mirror, request, extra) as (child, ours):
            relay = PushRelay(serving.desk, serving.writing, push, repo, client, guest, child, ours)
            await relay.run(self._limits.idle_timeout)

    async def _serve_v2(self, guest: socket.socket, client: str, repo: Repo) -> None:
        """Command by command: v2 keeps no state between them, over git:// either."""
        stream, reader, engine = SocketStream(guest, self._limits.idle_timeout), V2Reader(), self._serving.engine
        await stream.send(await engine.advertise(repo))
        while True:
            async with asyncio.timeout(self._limits.idle_timeout):
                request = await reader.read(stream.receive)
            if request is None:
                return
            await engine.answer(repo, request, stream, Caller(client, "git"))


def _client_name(address: tuple[str, int]) -> str:
    """The guest's address without its port, IPv4 also when it came over a dual-stack socket."""
    return str(address[0]).removeprefix("::ffff:")


async def _read_exactly(guest: socket.socket, size: int) -> bytes:
    loop = asyncio.get_running_loop()
    data = b""
    while len(data) < size:
        more = await loop.sock_recv(guest, size - len(data))
        if not more:
            raise ConnectionResetError("the guest left before its request was whole")
        data += more
    return data


async def _say_error(guest: socket.socket, text: str) -> None:
    """An ERR packet, then a lingering close: unread bytes would make the kernel reset it off the guest's hands."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(guest, packet(f"ERR gitmirror: {text}".encode("utf-8", "replace")[:1000]))
    guest.shutdown(socket.SHUT_WR)
    drained = 0
    async with asyncio.timeout(LINGER_SECONDS):
        while drained < LINGER_BYTES and (data := await loop.sock_recv(guest, 65536)):
            drained += len(data)
