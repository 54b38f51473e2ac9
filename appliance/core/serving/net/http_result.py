"""Answers git's smart HTTP services: one result, whose head goes out with its first byte."""

from __future__ import annotations

from http import HTTPStatus

from appliance.core.serving.net.http import Exchange

NO_CACHE = {"cache-control": "no-cache, max-age=0, must-revalidate"}


class ResultSink:
    """A sink that sends the head of the answer with its first byte: until then it can still become an error."""

    def __init__(self, exchange: Exchange, service: str, what: str = "result", first: bytes = b"") -> None:
        self._exchange = exchange
        self._headers = {"content-type": f"application/x-{service}-{what}", **NO_CACHE}
        self._first = first

    async def _start(self) -> None:
        if not self._exchange.started:
            await self._exchange.start(HTTPStatus.OK, self._headers)
            await self._exchange.send(self._first)

    async def send(self, data: bytes) -> None:
        """A piece of the body."""
        await self._start()
        await self._exchange.send(data)

    async def send_file(self, file: int, offset: int, count: int) -> None:
        """A piece of the body, out of an open file."""
        await self._start()
        await self._exchange.send_file(file, offset, count)

    async def finish(self) -> None:
        """The end, also of an answer of no bytes."""
        await self._start()
        await self._exchange.finish()
