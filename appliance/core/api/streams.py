"""Sends bodies that are made as they are sent, and ends those whose caller may no longer have them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing

from starlette.responses import StreamingResponse
from starlette.types import Message, Send

from appliance.core.api.declaration import Lasting

log = logging.getLogger(__name__)

STREAMED = 60.0
"""Seconds that a client may hold up a response that holds a slot, beyond what it takes at LEAST_PACE."""
LEAST_PACE = 65536
"""Bytes a second, on average. The time that the next piece is waited for does not count."""


class Pieces:
    """A stream whose first piece was read already. Closing it before its start ends it too, unlike a generator.

    `at_end` is called when it has ended.
    """

    def __init__(self, first: bytes, rest: AsyncGenerator[bytes, None], at_end: Callable[[], None]) -> None:
        self._first: bytes | None = first
        self._rest = rest
        self._at_end = at_end

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        first, self._first = self._first, None
        return first if first is not None else await anext(self._rest)

    async def aclose(self) -> None:
        """Ends the stream."""
        try:
            await self._rest.aclose()
        finally:
            self._at_end()


class Stream(StreamingResponse):
    """Ends what yields the body as soon as the response ends, also when the client has left."""

    async def stream_response(self, send: Send) -> None:
        async with aclosing(self.body_iterator):  # type: ignore[type-var]
            await super().stream_response(send)


class GuardedStream(Stream):
    """Ends early, without the end of its body, so that the client knows that it is incomplete.

    That is when `lasting` says that the caller may no longer have it, also while a slow client holds it up; and, with
    `is_paced`, when its client takes it more slowly than LEAST_PACE.
    """

    def __init__(
        self,
        pieces: Pieces,
        status: int,
        headers: Mapping[str, str],
        media_type: str,
        lasting: Lasting,
        *,
        is_paced: bool,
    ) -> None:
        super().__init__(pieces, status, headers, media_type)
        self._lasting = lasting
        self._is_paced = is_paced

    async def stream_response(self, send: Send) -> None:
        if self._is_paced:
            send = _Paced(send).send
        try:
            async with asyncio.timeout(None) as limit:
                # A time in the past: it is reached at once, wherever this waits.
                async with self._lasting(lambda: limit.reschedule(0)):
                    await super().stream_response(send)
        except TimeoutError:
            if not limit.expired():
                raise
            # Whoever runs this cuts the connection, because the end of the body was not sent.
            log.info("a response was cut off: its API token was revoked or has expired")
        except _TooSlow:
            log.info("a response was cut off: its client took it more slowly than %d bytes a second", LEAST_PACE)


class _TooSlow(Exception):
    """The client takes too little of a response that holds a slot."""


class _Paced:
    """Sends with `send` while the client keeps LEAST_PACE. Raises _TooSlow."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._left = STREAMED

    async def send(self, message: Message) -> None:
        """Sends one message."""
        loop = asyncio.get_running_loop()
        self._left += len(message.get("body", b"")) / LEAST_PACE
        began = loop.time()
        try:
            async with asyncio.timeout(self._left) as limit:
                await self._send(message)
        except TimeoutError:
            if not limit.expired():
                raise
            raise _TooSlow from None
        self._left -= loop.time() - began
