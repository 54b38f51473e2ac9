"""The admin port's HTTP routes: webhooks, requested refreshes, and the read-only pages."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from http import HTTPStatus

from appliance.core.access.gate import AccessGate
from appliance.core.config.secret_files import SecretError, SecretFile, is_equal
from appliance.core.models import ALLOWED, Health, Repo
from appliance.core.observability.metrics import Metrics
from appliance.core.observability.push_watch import PushWatch
from appliance.core.refresh.announcements import Announcements
from appliance.core.serving.net.http import Exchange, HttpError
from appliance.core.serving.net.http_pages import TextResponse, alive, plain_routes
from appliance.core.serving.ports.webhook import CREATE, DELETE, PING, PUSH, Finder, Malformed, Signature, read_delivery

WEBHOOK = "/hooks/github"
REFRESH = "/refresh"
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

LARGEST_BODY = 25 * 2**20
"""The most bytes of a webhook, because GitHub sends at most 25 MB."""
MOST_HELD = 64 * 2**20
"""The most bytes of all webhook bodies at once, because anyone who reaches the port can send some."""
BODY_TIMEOUT = 30.0
"""Seconds that a body may take to arrive."""
IN_A_THREAD = 2**18
"""Bytes above which a body is parsed in a thread, because 25 MB of JSON take a third of a second."""


class AdminRoutes:
    """Takes webhooks and requested refreshes, and serves `/healthz`, `/readyz` and `/metrics`.

    `secret_file` gives the path of the webhook secret, `token_file` that of the refresh token. An empty path turns the
    route off.
    """

    def __init__(
        self,
        secret_file: Callable[[], str],
        token_file: Callable[[], str],
        announcements: Announcements,
        repos: Callable[[], list[Repo]],
        health: Callable[[int], Health],
        gate: AccessGate,
        metrics: Metrics,
        push_watch: PushWatch,
    ) -> None:
        self._secret = SecretFile("[refresh] webhook_secret_file", secret_file)
        self._token = SecretFile("[refresh] token_file", token_file)
        self._announcements = announcements
        self._repos = repos
        self._health = health
        self._gate = gate
        self._metrics = metrics
        self._push_watch = push_watch
        pages = {"/healthz": alive, "/readyz": self._readiness, "/metrics": self._metrics_page}
        self._pages = plain_routes(pages)
        self._held = 0
        self._finder = Finder([])
        self._finder_repos: list[Repo] | None = None

    async def handle(self, exchange: Exchange) -> None:
        """Answers one request. Raises HttpError, IdleTimeout, OSError."""
        if exchange.path == WEBHOOK:
            try:
                await self._webhook(exchange)
            except HttpError as error:
                self._metrics.webhook(error.status)
                raise
        elif exchange.path.endswith(REFRESH) and exchange.path.count("/") >= 3:
            await self._refresh(exchange, exchange.path.removesuffix(REFRESH))
        else:
            await self._pages(exchange)

    def complaints(self) -> list[str | None]:
        """For each route that is configured but off, the reason; None for the others."""
        return [self._secret.problem(), self._token.problem()]

    def _readiness(self) -> TextResponse:
        """`/readyz`: 200 once a refresh of every enabled repository was tried. Also reports whether pushes are off.

        That is no reason for 503, because the caller decides whether guests are sent here, and most guests only read.
        """
        # Guests bring allowed ones at any time, which says nothing about this node.
        enabled = [repo for repo in self._repos() if repo.enabled and repo.source != ALLOWED]
        untried = [repo.name for repo in enabled if self._health(repo.id).checked_at is None]
        if untried:
            return TextResponse(503, f"not tried yet: {', '.join(untried)}\n")
        off = self._push_watch.off
        return TextResponse(200, f"ready\n{off.warning}\n" if off else "ready\n")

    def _metrics_page(self) -> TextResponse:
        return TextResponse(200, self._metrics.render(), METRICS_TYPE)

    async def _webhook(self, exchange: Exchange) -> None:
        """`POST /hooks/github`. No part of the body is used before its signature is verified."""
        secret = _read(self._secret)
        _require_post(exchange)
        given = exchange.headers.get("x-hub-signature-256", "")
        if not given:
            raise HttpError(HTTPStatus.UNAUTHORIZED, "X-Hub-Signature-256 is missing: set the webhook's secret\n")
        signature = Signature(secret, given)
        body = await self._body(exchange, signature)
        if not signature.holds():
            raise HttpError(
                HTTPStatus.UNAUTHORIZED, "the signature is wrong; check that both sides have the same secret\n"
            )
        # A missing header means push, so that scripts that know only the secret work.
        event = exchange.headers.get("x-github-event", PUSH)
        if event == PING:
            await self._answer(exchange, HTTPStatus.OK, {"pong": True})
            return
        if event not in (PUSH, CREATE, DELETE):
            await self._answer(exchange, HTTPStatus.ACCEPTED, {"ignored": event[:100]})
            return
        content_type = exchange.headers.get("content-type", "")
        try:
            if len(body) > IN_A_THREAD:
                delivery = await asyncio.to_thread(read_delivery, event, content_type, bytes(body))
            else:
                delivery = read_delivery(event, content_type, bytes(body))
        except Malformed as error:
            raise HttpError(HTTPStatus.BAD_REQUEST, f"{error}\n") from None
        repos = self._current_finder().find(delivery)
        if not repos:
            raise HttpError(HTTPStatus.NOT_FOUND, "not mirrored here\n")
        for repo in repos:
            self._announcements.take(repo, delivery.announcement)
        await self._answer(exchange, HTTPStatus.ACCEPTED, {"accepted": [repo.name for repo in repos]})

    async def _refresh(self, exchange: Exchange, path: str) -> None:
        """`POST /OWNER/REPO/refresh`, for platforms without webhooks."""
        token = _read(self._token)
        _require_post(exchange)
        kind, _, given = exchange.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not is_equal(given.strip().encode("latin-1", "replace"), token):
            raise HttpError(HTTPStatus.UNAUTHORIZED, "a bearer token is required\n", {"www-authenticate": "Bearer"})
        repo = self._gate.find_any(path)
        if repo is None:
            raise HttpError(HTTPStatus.NOT_FOUND, "not mirrored here\n")
        self._announcements.take(repo, None)
        await _answer(exchange, HTTPStatus.ACCEPTED, {"accepted": repo.name})

    async def _body(self, exchange: Exchange, signature: Signature) -> bytearray:
        """The whole body, with any framing. Raises HttpError 408, 413, 415, 503."""
        if "content-encoding" in exchange.headers:
            raise HttpError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "webhooks must have no content-encoding\n")
        too_large = HttpError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a webhook may have at most {LARGEST_BODY} bytes\n")
        if int(exchange.headers.get("content-length", "0")) > LARGEST_BODY:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_TIMEOUT):
                while piece := await exchange.receive():
                    body += piece
                    self._held += len(piece)
                    signature.update(piece)
                    if len(body) > LARGEST_BODY:
                        raise too_large
                    if self._held > MOST_HELD:
                        raise HttpError(
                            HTTPStatus.SERVICE_UNAVAILABLE,
                            "too many webhooks at once; try again\n",
                            {"retry-after": "5"},
                        )
        except TimeoutError:
            raise HttpError(HTTPStatus.REQUEST_TIMEOUT, "the body took too long\n") from None
        finally:
            self._held -= len(body)
        return body

    def _current_finder(self) -> Finder:
        repos = self._repos()
        if repos is not self._finder_repos:
            self._finder, self._finder_repos = Finder(repos), repos
        return self._finder

    async def _answer(self, exchange: Exchange, status: HTTPStatus, document: object) -> None:
        self._metrics.webhook(status)
        await _answer(exchange, status, document)


def _read(secret: SecretFile) -> bytes:
    """The secret. Raises HttpError: 404 if none is configured, 503 if its file cannot be used."""
    try:
        value = secret.read()
    except SecretError:
        # `status` gives the path of the file and the reason. Callers of this port do not get them.
        text = "this node cannot read its secret; `status` tells its operator why\n"
        raise HttpError(HTTPStatus.SERVICE_UNAVAILABLE, text) from None
    if value is None:
        raise HttpError(HTTPStatus.NOT_FOUND, "there is nothing here\n")
    return value


def _require_post(exchange: Exchange) -> None:
    if exchange.method != "POST":
        raise HttpError(HTTPStatus.METHOD_NOT_ALLOWED, "only POST is answered here\n", {"allow": "POST"})


async def _answer(exchange: Exchange, status: HTTPStatus, document: object) -> None:
    await exchange.answer(status, json.dumps(document) + "\n", {"content-type": "application/json"})
