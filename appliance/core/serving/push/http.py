"""Pushes over HTTP: `git receive-pack --stateless-rpc` with the same relay, guard, limits and log as git://."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus

import h11

from appliance.core.git.complaints import Hear
from appliance.core.git.mirror import Mirror
from appliance.core.models import Repo
from appliance.core.process.children import Child, Children, limit_push
from appliance.core.process.error_output import error_output
from appliance.core.serving.net.http import Exchange, HttpError
from appliance.core.serving.net.http_result import ResultSink
from appliance.core.serving.net.reading import Budget
from appliance.core.serving.net.streams import SocketStream
from appliance.core.serving.push.parties import PushAuthority
from appliance.core.serving.push.relay import PushRelay
from appliance.core.serving.push.whereabouts import ENDED
from appliance.core.serving.wire.requests import RECEIVE_PACK

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HttpPushes:
    """Takes pushes over HTTP. `environment` is for receive-pack; `writing` locks a mirror; `idle` is in seconds.

    `budget` is charged for ref commands while they arrive. `hear` gets each mirror with what git printed there.
    """

    mirror_of: Callable[[str], Mirror]
    children: Children
    environment: Mapping[str, str]
    authority: PushAuthority
    writing: Callable[[str], AbstractAsyncContextManager[None]]
    budget: Budget
    idle: float
    hear: Hear

    async def advertise(self, repo: Repo, exchange: Exchange) -> bytes:
        """The advertisement of `receive-pack`. Raises HttpError if it fails, IdleTimeout, OSError."""
        output = bytearray()
        async with self._child(repo, exchange, "", "--advertise-refs") as (child, ours):
            while data := await ours.receive():
                output += data
            code = await child.wait()
        if code or not output:
            log.error("git receive-pack of %s ended with exit code %d", repo.name, code)
            raise HttpError(HTTPStatus.INTERNAL_SERVER_ERROR, f"gitmirror: {ENDED}\n")
        return bytes(output)

    async def receive(self, repo: Repo, exchange: Exchange, give_back: Callable[[], None]) -> None:
        """Takes one push and answers it. `give_back` releases the slot. Raises PacketError, IdleTimeout, OSError."""
        push, caller = self.authority.open(), exchange.caller
        async with self._child(repo, exchange, push) as (child, ours):
            guest, share = _Posted(exchange), self.budget.share(exchange.seat.peer)
            mirror = self.mirror_of(repo.name).path
            relay = PushRelay(
                self.authority, self.writing, push, repo, mirror, caller, guest, child, ours, share, stateless=True,
                give_back=give_back,
            )  # fmt: skip
            await relay.run(self.idle)

    @contextlib.asynccontextmanager
    async def _child(
        self, repo: Repo, exchange: Exchange, push: str, *arguments: str
    ) -> AsyncIterator[tuple[Child, SocketStream]]:
        environment = {**self.environment, "REMOTE_ADDR": exchange.client}
        if push:
            environment |= self.authority.environment(push, exchange.caller.guest)
        mirror = self.mirror_of(repo.name).path
        with contextlib.ExitStack() as stack:
            errors = stack.enter_context(error_output(partial(self.hear, mirror)))
            ours, theirs = socket.socketpair()
            stack.enter_context(ours)
            with theirs:
                ours.setblocking(False)
                child = self.children.start(
                    ["git", "receive-pack", "--stateless-rpc", *arguments, str(mirror)],
                    env=environment,
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    stderr=errors,
                )
            try:
                limit_push(child.pid)
                yield child, SocketStream(ours, None)
            finally:
                ours.close()
                # A second cancellation must not leave the child running.
                await asyncio.shield(child.end())


class _Posted:
    """The guest's side of a push over HTTP: receives the body of the request, sends the response."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._answer = ResultSink(exchange, RECEIVE_PACK)

    async def receive(self) -> bytes:
        """The next bytes of the body. Raises OSError, among others for a body cut short or not valid gzip."""
        try:
            return await self._exchange.receive()
        except (HttpError, h11.RemoteProtocolError) as error:
            raise ConnectionAbortedError(str(error)) from None

    async def send(self, data: bytes) -> None:
        """Sends a piece of the response."""
        if data:
            # A report, after which the guest asks for nothing more. The probe before a large push gets none.
            self._answer.make_last()
            await self._answer.send(data)

    async def end(self) -> None:
        """Ends the response."""
        await self._answer.finish()

    def abort(self) -> None:
        """Cuts the connection."""
        self._exchange.abort()
