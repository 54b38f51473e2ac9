"""The response of git's smart HTTP services, whose head is sent with the first byte of the body."""

from __future__ import annotations

from http import HTTPStatus

from appliance.core.serving.net.http import Exchange

NO_CACHE = {"cache-control": "no-cache, max-age=0, must-revalidate"}


class ResultSink:
    """A sink that sends the head with the first byte, so that until then the response can still become an error."""

    def __init__(self, exchange: Exchange, service: str, what: str = "result", first: bytes = b"") -> None:
        self._exchange = exchange
        self._headers = {"content-type": f"application/x-{service}-{what}", **NO_CACHE}
        self._first = first

    def make_last(self) -> None:
        """Ends the connection after this result, the last one of an operation.

        Some tunnels let nobody else through until we do, and do not tell us that the guest has ended. Only for git and
        what calls itself so: it opens another connection for its next operation anyway, and other clients may not.
        """
        if self._exchange.headers.get("user-agent", "").startswith("git/"):
            self._exchange.make_last()

    async def _start(self) -> None:
        if not self._exchange.started:
            await self._exchange.start(HTTPStatus.OK, self._headers)
            await self._exchange.send(self._first)

    async def send(self, data: bytes) -> None:
        """Sends a piece of the body."""
        await self._start()
        await self._exchange.send(data)

    async def send_file(self, file: int, offset: int, count: int) -> None:
        """Sends a piece of the body from an open file."""
        await self._start()
        await self._exchange.send_file(file, offset, count)

    async def finish(self) -> None:
        """Ends the response, even one without a body."""
        await self._start()
        await self._exchange.finish()
