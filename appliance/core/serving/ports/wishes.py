"""What a guest may wait for: a repository that is allowed and not here yet."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Coroutine
from http import HTTPStatus
from typing import Any, Protocol
from urllib.parse import quote

from appliance.core.access.allowed import AllowedUpstream, Coming
from appliance.core.models import Guest
from appliance.core.serving.net.http import Exchange, HttpError
from appliance.core.serving.net.seats import Seat
from appliance.core.serving.wire.requests import RequestError

TRY_AGAIN = 30
"""Seconds after which a guest may ask again for what is still being cloned."""


class Brings(Protocol):
    """Brings repositories: `daemon.on_demand.OnDemand`."""

    async def wait(self, path: str, peer: str, seconds: float) -> tuple[Coming, AllowedUpstream | None]:
        """Waits until what is asked for is here; see there."""
        ...

    def http_host(self, host: str) -> str | None:
        """`SCHEME://HOST` if upstreams on that host may be asked for."""
        ...


class GuestWishes:
    """Waits for repositories, `seconds` at most.

    A guest that waits holds no slot, only its connection, and connections are shared fairly (decision 018). A guest
    that may see only what it was granted causes nothing and waits for nothing.
    """

    def __init__(self, brings: Brings, seconds: float) -> None:
        self._brings = brings
        self._seconds = seconds

    def http_host(self, host: str) -> str | None:
        """`SCHEME://HOST` if upstreams on that host may be asked for, or None."""
        return self._brings.http_host(host)

    async def over_http(self, exchange: Exchange, path: str, rest: str | None = None) -> bool:
        """Returns whether it is worth looking again for the repository at a path that the gate does not know.

        Raises HttpError if it is on its way: a redirect to `rest` below its upstream, or 503 without `rest`.
        """
        if not self._may_wish(exchange.guest):
            return False
        # A client may end its side once it has sent its request, and wait for the response.
        coming, upstream = await self._wait(exchange.seat, path, None)
        if upstream is None or coming in (Coming.HERE, Coming.NOTHING):
            return coming is Coming.HERE
        if rest is not None and upstream.url.startswith("http"):
            location = f"{quote(upstream.url, safe=':/[]')}/{rest}"
            text = f"{_on_its_way(path, coming)}; see {location}\n"
            raise HttpError(HTTPStatus.TEMPORARY_REDIRECT, text, {"location": location})
        headers = {"retry-after": str(TRY_AGAIN)}
        raise HttpError(HTTPStatus.SERVICE_UNAVAILABLE, f"{_on_its_way(path, coming)}\n", headers)

    async def over_git(self, seat: Seat, path: str, *, more_follows: bool) -> None:
        """Returns when the repository is here, or nothing will come. Raises RequestError if it is on its way.

        With `more_follows`, the guest speaks protocol v2 and has more to send, so that the end of its side means that
        it has gone. Raises OSError then. Others may end their side and wait for the answer.
        """
        if not self._may_wish(seat.guest):
            return
        coming, _ = await self._wait(seat, path, _ends(seat.socket) if more_follows else None)
        if coming in (Coming.ASKED, Coming.CLONING):
            raise RequestError(_on_its_way(path, coming))

    @staticmethod
    def _may_wish(guest: Guest | None) -> bool:
        return guest is None or not guest.only

    async def _wait(
        self, seat: Seat, path: str, hung_up: Coroutine[Any, Any, None] | None
    ) -> tuple[Coming, AllowedUpstream | None]:
        waiting = asyncio.ensure_future(self._brings.wait(path, seat.peer, self._seconds))
        leaving = None if hung_up is None else asyncio.ensure_future(hung_up)
        # Its connection counts as one that waits, so that it is not taken for an idle one when there are too many.
        was_waiting, seat.waiting = seat.waiting, True
        try:
            await asyncio.wait([waiting, *([leaving] if leaving else [])], return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                raise ConnectionResetError("the guest hung up while it waited for a first clone")
            return waiting.result()
        finally:
            seat.waiting = was_waiting
            tasks = [waiting, *([leaving] if leaving else [])]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _on_its_way(path: str, coming: Coming) -> str:
    state = "is being cloned" if coming is Coming.CLONING else "was asked for"
    return f"{path} is not here yet, but {state}: try again in a while, or use its upstream"


async def _ends(connection: socket.socket) -> None:
    """Returns when the peer has ended its side. Reads nothing: if more arrives, it never returns."""
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(connection.fileno(), readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(connection.fileno())
    with contextlib.suppress(OSError):
        if connection.recv(1, socket.MSG_PEEK):
            await asyncio.Event().wait()
