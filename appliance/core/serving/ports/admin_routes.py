"""The admin port's HTTP routes: webhooks and asked-for refreshes beside what only is looked at."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from http import HTTPStatus

from appliance.core.access.gate import AccessGate
from appliance.core.config.secret_files import SecretError, SecretFile, is_equal
from appliance.core.models import Health, Repo
from appliance.core.observability.metrics import Metrics
from appliance.core.observability.push_watch import PushWatch
from appliance.core.refresh.announcements import Announcements
from appliance.core.serving.net.http import Exchange, HttpError, TextResponse, alive, plain_routes
from appliance.core.serving.ports.webhook import CREATE, DELETE, PING, PUSH, Finder, Malformed, Signature, read_delivery

WEBHOOK = "/hooks/github"
REFRESH = "/refresh"
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

LARGEST_BODY = 25 * 2**20
"""Bytes of a webhook: GitHub sends 25 MB at most."""
MOST_HELD = 64 * 2**20
"""Bytes of bodies of all webhooks under way, since whoever reaches the port may send some."""
BODY_TIMEOUT = 30.0
"""Seconds that a body may take to come in."""
IN_A_THREAD = 2**18
"""Bytes past which a body is read off the loop: 25 MB of JSON take a third of a second."""


class AdminRoutes:
    """Webhooks and asked-for refreshes, and what `metrics` and `health` tell.

    `secret_file` and `token_file` are where the secret of the one and the token of the other are; empty: it is off.
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
        looks = {"/healthz": alive, "/readyz": self._readiness, "/metrics": self._page_of_metrics}
        self._looks = plain_routes(looks)
        self._held = 0
        self._finder = Finder([])
        self._found_for: list[Repo] | None = None

    async def handle(self, exchange: Exchange) -> None:
        """One request."""
        if exchange.path == WEBHOOK:
            try:
                await self._webhook(exchange)
            except HttpError as error:
                self._metrics.webhook(error.status)
                raise
        elif exchange.path.endswith(REFRESH) and exchange.path.count("/") >= 3:
            await self._refresh(exchange, exchange.path.removesuffix(REFRESH))
        else:
            await self._looks(exchange)

    def complaints(self) -> list[str | None]:
        """Why a route is off that should not be, in words, or None."""
        return [self._secret.problem(), self._token.problem()]

    def _readiness(self) -> TextResponse:
        """`/readyz`: every enabled repository was tried once. Pushes that are off are said, and are no reason for 503.

        Who asks this sends guests here or elsewhere, and most of what guests want is to read.
        """
        enabled = [repo for repo in self._repos() if repo.enabled]
        untried = [repo.name for repo in enabled if self._health(repo.id).checked_at is None]
        if untried:
            return TextResponse(503, f"not tried yet: {', '.join(untried)}\n")
        off = self._push_watch.off
        return TextResponse(200, f"ready\n{off.warning}\n" if off else "ready\n")

    def _page_of_metrics(self) -> TextResponse:
        return TextResponse(200, self._metrics.render(), METRICS_TYPE)

    async def _webhook(self, exchange: Exchange) -> None:
        """`POST /hooks/github`. Nothing of the body is looked at before its signature holds."""
        secret = _read(self._secret)
        _require_post(exchange)
        given = exchange.headers.get("x-hub-signature-256", "")
        if not given:
            raise HttpError(HTTPStatus.UNAUTHORIZED, "X-Hub-Signature-256 is missing: set the webhook's secret\n")
        signature = Signature(secret, given)
        body = await self._body(exchange, signature)
        if not signature.holds():
            raise HttpError(HTTPStatus.UNAUTHORIZED, "the signature is wrong: is it the same secret on both sides?\n")
        # Who sends none is taken to push: a script that knows no more than the secret.
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
        found = self._current_finder().find(delivery)
        if not found:
            raise HttpError(HTTPStatus.NOT_FOUND, "not mirrored here\n")
        for repo in found:
            self._announcements.take(repo, delivery.announcement)
        await self._answer(exchange, HTTPStatus.ACCEPTED, {"accepted": [repo.name for repo in found]})

    async def _refresh(self, exchange: Exchange, path: str) -> None:
        """`POST /OWNER/REPO/refresh`, for platforms without webhooks."""
        token = _read(self._token)
        _require_post(exchange)
        kind, _, given = exchange.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not is_equal(given.strip().encode("latin-1", "replace"), token):
            raise HttpError(HTTPStatus.UNAUTHORIZED, "a bearer token is needed\n", {"www-authenticate": "Bearer"})
        repo = self._gate.find_any(path)
        if repo is None:
            raise HttpError(HTTPStatus.NOT_FOUND, "not mirrored here\n")
        self._announcements.take(repo, None)
        await _answer(exchange, HTTPStatus.ACCEPTED, {"accepted": repo.name})

    async def _body(self, exchange: Exchange, signature: Signature) -> bytearray:
        """The whole body, whichever way it is framed. Raises HttpError 408, 413, 415, 503."""
        if "content-encoding" in exchange.headers:
            raise HttpError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "webhooks are taken without a content-encoding\n")
        too_large = HttpError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a webhook has {LARGEST_BODY} bytes at most\n")
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
                        raise HttpError(HTTPStatus.SERVICE_UNAVAILABLE, "too much at once\n", {"retry-after": "5"})
        except TimeoutError:
            raise HttpError(HTTPStatus.REQUEST_TIMEOUT, "the body took too long\n") from None
        finally:
            self._held -= len(body)
        return body

    def _current_finder(self) -> Finder:
        repos = self._repos()
        if repos is not self._found_for:
            self._finder, self._found_for = Finder(repos), repos
        return self._finder

    async def _answer(self, exchange: Exchange, status: HTTPStatus, document: object) -> None:
        self._metrics.webhook(status)
        await _answer(exchange, status, document)


def _read(secret: SecretFile) -> bytes:
    """The secret. Raises HttpError: 404 when there is none, 503 when its file cannot be used."""
    try:
        found = secret.read()
    except SecretError:
        # Where the file is and what is wrong with it is for `status` to say.
        text = "the secret of this node cannot be read; its operator sees why in `status`\n"
        raise HttpError(HTTPStatus.SERVICE_UNAVAILABLE, text) from None
    if found is None:
        raise HttpError(HTTPStatus.NOT_FOUND, "there is nothing here\n")
    return found


def _require_post(exchange: Exchange) -> None:
    if exchange.method != "POST":
        raise HttpError(HTTPStatus.METHOD_NOT_ALLOWED, "only POST is answered here\n", {"allow": "POST"})


async def _answer(exchange: Exchange, status: HTTPStatus, document: object) -> None:
    await exchange.answer(status, json.dumps(document) + "\n", {"content-type": "application/json"})
