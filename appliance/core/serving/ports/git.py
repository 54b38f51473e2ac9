"""The git:// port: reads the first packet of each connection, finds the mirror, and serves it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial

from appliance.core.access.gate import AccessGate
from appliance.core.errors import GitmirrorError
from appliance.core.git.mirror import Mirror
from appliance.core.models import Caller, Repo
from appliance.core.process.children import Children
from appliance.core.serving.fetch.cached_response import AnswerFailed
from appliance.core.serving.fetch.engine import Engine
from appliance.core.serving.fetch.relayed import Relayed
from appliance.core.serving.fetch.request_reader import V2Reader
from appliance.core.serving.fetch.upload_pack import UploadPackError
from appliance.core.serving.net.acceptor import EXHAUSTED, EXHAUSTED_TEXT, Busy
from appliance.core.serving.net.admission import Admission
from appliance.core.serving.net.linger import LINGER_SECONDS, linger
from appliance.core.serving.net.seats import Seat
from appliance.core.serving.net.streams import IdleTimeout, SocketStream
from appliance.core.serving.ports.git_daemon import GitDaemon, daemon_child, relay_fetch
from appliance.core.serving.ports.preparing import prepare
from appliance.core.serving.ports.wishes import GuestWishes
from appliance.core.serving.push.parties import PushAuthority
from appliance.core.serving.push.relay import PushRelay, ReceivePackEnded
from appliance.core.serving.wire.pktline import PacketError, packet, packet_length
from appliance.core.serving.wire.requests import (
    LARGEST_REQUEST,
    RECEIVE_PACK,
    UPLOAD_PACK,
    DaemonRequest,
    RequestError,
    parse_daemon_request,
)
from appliance.core.text import escape

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Serving:
    """The parts of the appliance that a connection uses."""

    mirror_of: Callable[[str], Mirror]
    children: Children
    daemon: GitDaemon
    authority: PushAuthority
    engine: Engine
    writing: Callable[[str], AbstractAsyncContextManager[None]]


class GitPort:
    """Serves the connections of git://. `gate` knows which repositories guests may read."""

    def __init__(self, serving: Serving, gate: AccessGate, admission: Admission, wishes: GuestWishes) -> None:
        self._serving = serving
        self._gate = gate
        self._wishes = wishes
        self._admission = admission
        self._limits = admission.limits

    async def serve(self, seat: Seat) -> None:
        """Serves one connection to its end. Sends errors to the guest instead of raising them."""
        guest, client = seat.socket, seat.client
        try:
            async with asyncio.timeout(self._limits.total_timeout):
                await self._answer(seat)
                await linger(SocketStream(guest, self._limits.idle_timeout))
        except (RequestError, PacketError, Busy) as error:
            log.info("%s refused: %s", client, error)
            with contextlib.suppress(OSError, TimeoutError, IdleTimeout):
                await _send_error(guest, str(error))
        except ReceivePackEnded as error:
            log.error("%s cannot push: %s", client, error)
            with contextlib.suppress(OSError, TimeoutError, IdleTimeout):
                await _send_error(guest, str(error))
        except (IdleTimeout, TimeoutError):
            log.info("%s was cut off: too slow over git://", client)
        except (AnswerFailed, UploadPackError, GitmirrorError) as error:
            # The partial response ends with git's own error message. The guest's git reports that it was cut off there.
            log.info("%s: the fetch failed: %s", client, str(error) or "the response could not be made")
        except OSError as error:
            log.info("%s: connection ended early: %s", client, error)
            if error.errno in EXHAUSTED:
                with contextlib.suppress(OSError, TimeoutError, IdleTimeout):
                    await _send_error(guest, EXHAUSTED_TEXT)

    async def _answer(self, seat: Seat) -> None:
        if seat.refused:
            raise Busy("too many connections; try again later")
        request = await self._read_request(seat.socket)
        repo = self._find_now(seat, request.path)
        if repo is None:
            if request.service == UPLOAD_PACK:
                await self._wishes.over_git(seat, request.path, more_follows=request.version == 2)
            repo = self._find(seat, request.path)
        if request.service != RECEIVE_PACK and request.version == 2:
            await self._serve_v2(seat, request.path, repo)
            return
        async with self._admission.place(seat):
            if request.service == RECEIVE_PACK:
                await self._push(seat, request, repo)
            else:
                await self._relay(seat, request, repo)

    async def _read_request(self, guest: socket.socket) -> DaemonRequest:
        stream = SocketStream(guest, None)
        try:
            async with asyncio.timeout(self._limits.request_timeout):
                size = packet_length(await _read_exactly(stream, 4))
                if not 4 < size <= LARGEST_REQUEST:
                    raise RequestError("malformed request")
                return parse_daemon_request(await _read_exactly(stream, size - 4))
        except PacketError:
            raise RequestError("malformed request") from None
        except TimeoutError:
            raise RequestError(f"no request arrived within {self._limits.request_timeout:g}s") from None

    def _find(self, seat: Seat, path: str) -> Repo:
        """The repository at a path. Private ones are those of a known guest, as git:// has no tokens.

        Raises RequestError.
        """
        repo = self._find_now(seat, path)
        if repo is None:
            raise RequestError(f"{path} is not mirrored here")
        return repo

    def _find_now(self, seat: Seat, path: str) -> Repo | None:
        seat.guest = self._gate.guest_of(seat.socket_of, seat.client)
        return self._gate.find(path, seat.guest)

    async def _serve_v2(self, seat: Seat, path: str, repo: Repo) -> None:
        """Answers command by command, because v2 keeps no state between commands, on git:// either.

        The pack is the last answer: git asks for nothing after it on the same connection. Waiting for it to close would
        keep a tunnel busy that never tells us so.
        """
        engine, last = self._serving.engine, asyncio.Event()
        stream, reader = SocketStream(seat.socket, self._limits.idle_timeout), V2Reader(engine.memo)
        await stream.send(await engine.advertise(repo))
        while True:
            with engine.budget.share(seat.peer) as share:
                with stream.within(self._limits.idle_timeout):
                    request = await reader.read(stream.receive, share)
                if request is None:
                    return
                share.answering()
                # It may have become private or been removed meanwhile, because a connection may stay open for long.
                if self._find(seat, path).id != repo.id:
                    raise RequestError(f"{path} is no longer mirrored here")
                catalog = self._gate.catalog
                if refusal := await prepare(engine, seat, repo, request):
                    await stream.send(refusal)
                    return
                if self._gate.catalog is not catalog and self._find(seat, path).id != repo.id:
                    raise RequestError(f"{path} is no longer mirrored here")
                asked = time.monotonic()
                # Hold a slot only while answering, so that idle or slow clients block nobody.
                async with self._admission.place(seat):
                    if reader.has_more:
                        # Pipelined requests are answered without a wait in between, so other tasks run here.
                        await asyncio.sleep(0)
                    caller = Caller(seat.client, "git", seat.guest, last.set, time.monotonic() - asked)
                    await engine.answer(repo, request, stream, caller, stream)
            # Whoever sent more ahead is answered all the same.
            if last.is_set() and not reader.has_more:
                return

    async def _relay(self, seat: Seat, request: DaemonRequest, repo: Repo) -> None:
        """Serves protocol v0 and v1, which git daemon speaks."""
        serving = self._serving
        mirror = serving.mirror_of(repo.name).path
        extra = {"REMOTE_ADDR": seat.client, "REMOTE_PORT": str(seat.port)}
        relayed = Relayed()

        def permitted() -> bool:
            current = self._find_now(seat, request.path)
            return current is not None and current.id == repo.id

        with serving.engine.hand_over(repo, relayed, request.version, _caller(seat)):
            async with daemon_child(serving.children, serving.daemon, mirror, request, extra) as (_, ours):
                await relay_fetch(seat.socket, ours, self._limits.idle_timeout, relayed, permitted)

    async def _push(self, seat: Seat, request: DaemonRequest, repo: Repo) -> None:
        serving = self._serving
        push = serving.authority.open()
        extra = {
            "REMOTE_ADDR": seat.client,
            "REMOTE_PORT": str(seat.port),
            **serving.authority.environment(push, seat.guest),
        }
        mirror = serving.mirror_of(repo.name).path
        async with daemon_child(serving.children, serving.daemon, mirror, request, extra) as (child, ours):
            relay = PushRelay(
                serving.authority,
                serving.writing,
                push,
                repo,
                mirror,
                _caller(seat),
                SocketStream(seat.socket, None),
                child,
                SocketStream(ours, None),
                serving.engine.budget.share(seat.peer),
                give_back=partial(self._admission.give_back, seat),
            )
            await relay.run(self._limits.idle_timeout)


def _caller(seat: Seat) -> Caller:
    return Caller(seat.client, "git", seat.guest)


async def _read_exactly(stream: SocketStream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = await stream.receive(size - len(data))
        if not more:
            raise ConnectionResetError("the guest disconnected before its request was complete")
        data += more
    return data


async def _send_error(guest: socket.socket, text: str) -> None:
    """Sends an ERR packet and ends the connection."""
    stream = SocketStream(guest, LINGER_SECONDS)
    await stream.send(packet(f"ERR gitmirror: {escape(text)}".encode()[:1000]))
    await linger(stream)
