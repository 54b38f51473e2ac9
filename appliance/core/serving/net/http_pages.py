"""Pages of plain text, such as `/healthz`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus

from appliance.core.serving.net.http import TEXT, Exchange, Handler, HttpError


@dataclass(frozen=True)
class TextResponse:
    """A complete response: status, text, and content type."""

    status: int
    text: str
    content_type: str = TEXT


def alive() -> TextResponse:
    """`/healthz`: the response itself shows that the process is alive."""
    return TextResponse(200, "ok\n")


def plain_routes(routes: Mapping[str, Callable[[], TextResponse]]) -> Handler:
    """A handler that answers GET and HEAD of exact paths, and everything else with 404."""

    async def handle(exchange: Exchange) -> None:
        route = routes.get(exchange.path)
        if route is None:
            raise HttpError(HTTPStatus.NOT_FOUND, "there is nothing here\n")
        require_read(exchange)
        response = route()
        await exchange.answer(response.status, response.text, {"content-type": response.content_type})

    return handle


def require_read(exchange: Exchange) -> None:
    """Raises HttpError 405 unless the method is GET or HEAD."""
    if exchange.method not in ("GET", "HEAD"):
        raise HttpError(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD are answered here\n", {"allow": "GET, HEAD"})
