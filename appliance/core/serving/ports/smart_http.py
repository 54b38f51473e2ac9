"""git's smart HTTP (gitprotocol-http), with the same engine, cache and push relay as git://."""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from typing import Protocol
from urllib.parse import quote

from appliance.core.access.gate import AccessGate
from appliance.core.errors import GitmirrorError
from appliance.core.models import Repo
from appliance.core.serving.fetch.cached_response import AnswerFailed
from appliance.core.serving.fetch.engine import Engine
from appliance.core.serving.fetch.request_memo import LARGE
from appliance.core.serving.fetch.request_reader import MOST_REQUEST_BYTES, V2Reader
from appliance.core.serving.fetch.upload_pack import Spool, UploadPackError
from appliance.core.serving.net.acceptor import EXHAUSTED, EXHAUSTED_TEXT, Busy
from appliance.core.serving.net.admission import Admission
from appliance.core.serving.net.http import Exchange, HttpError
from appliance.core.serving.net.http_pages import alive, plain_routes, require_read
from appliance.core.serving.net.http_result import NO_CACHE, ResultSink
from appliance.core.serving.net.reading import Share
from appliance.core.serving.ports.guest_routes import GuestRoutes
from appliance.core.serving.ports.lfs_routes import LFS_ROUTE, LfsRoutes, as_lfs
from appliance.core.serving.ports.preparing import prepare
from appliance.core.serving.ports.wishes import GuestWishes
from appliance.core.serving.push.attachments import Target
from appliance.core.serving.wire.pktline import FLUSH, PacketError, packet
from appliance.core.serving.wire.requests import RECEIVE_PACK, UPLOAD_PACK
from appliance.core.serving.wire.v2 import V2Request

log = logging.getLogger(__name__)

_ROUTE = re.compile(r"(/.+)/(info/refs|git-upload-pack|git-receive-pack|workspace\.tar|freshness)")
_ATTACHMENT = re.compile(r"(/.+)/agents/([^/]+)/([0-9a-f]{40}|[0-9a-f]{64})/attachments/([^/]+)")
_BESIDE_GIT = ("workspace.tar", "freshness")
"""What only a mirror has. A guest gets no redirect for it, but an error with Retry-After."""
_VERSION = re.compile(r"version=([012])")
MOST_CODED = 2**20
"""The most bytes of a compressed request that is looked up without unpacking it: a checkout of 40,000 files."""


class Pushes(Protocol):
    """Takes pushes over HTTP."""

    async def advertise(self, repo: Repo, exchange: Exchange) -> bytes:
        """The advertisement of `receive-pack`."""
        ...

    async def receive(self, repo: Repo, exchange: Exchange, give_back: Callable[[], None]) -> None:
        """Takes one push and answers it; calls `give_back` once it needs no slot."""
        ...


class AttachmentPuts(Protocol):
    """Takes attachments over HTTP."""

    async def receive(self, repo: Repo, exchange: Exchange, target: Target, still_there: Callable[[], bool]) -> None:
        """Takes one attachment and answers it."""
        ...


class SmartHttp:
    """The guests' HTTP port. `gate` knows which repositories each guest may read."""

    def __init__(
        self,
        engine: Engine,
        gate: AccessGate,
        admission: Admission,
        pushes: Pushes,
        attachments: AttachmentPuts,
        routes: GuestRoutes,
        lfs: LfsRoutes,
        wishes: GuestWishes,
    ) -> None:
        self._engine = engine
        self._gate = gate
        self._admission = admission
        self._pushes = pushes
        self._attachments = attachments
        self._routes = routes
        self._lfs_routes = lfs
        self._wishes = wishes
        self._pages = plain_routes({"/healthz": alive})

    async def handle(self, exchange: Exchange) -> None:
        """Answers one request. Raises HttpError, IdleTimeout, OSError."""
        if exchange.path == "/healthz":
            await self._pages(exchange)
            return
        if exchange.path == "/guest.sh":
            await self._guest_kit(exchange)
            return
        if (attached := _ATTACHMENT.fullmatch(exchange.path)) is not None:
            await self._attach(exchange, *attached.groups())
            return
        if (lfs := LFS_ROUTE.fullmatch(exchange.path)) is not None:
            await self._lfs(exchange, *lfs.groups())
            return
        match = _ROUTE.fullmatch(exchange.path)
        if match is None:
            raise HttpError(HTTPStatus.NOT_FOUND, "there is nothing here\n")
        path, action = match.groups()
        service = exchange.query.get("service", "") if action == "info/refs" else action
        repo = await self._find(exchange, path)
        if repo is None and (service == UPLOAD_PACK or action in _BESIDE_GIT):
            repo = await self._brought(exchange, path, None if action in _BESIDE_GIT else _below(action, service))
        if repo is None:
            self._redirect(path, action, service)
            raise _not_here(path)
        try:
            if action == UPLOAD_PACK:
                await self._fetch(exchange, repo, path)
                return
            if action == "freshness":
                # Takes no slot, because it may wait for a refresh, and an upstream that hangs would then block all
                # guests.
                await self._routes.freshness(exchange, repo, self._may_have(exchange, path, repo))
                return
            if action == "workspace.tar":
                may_have = self._may_have(exchange, path, repo)
                await self._routes.workspace_tar(exchange, repo, self._admission, may_have)
                return
            async with self._admission.place(exchange.seat):
                if action == "info/refs":
                    await self._info_refs(exchange, repo, service)
                else:
                    _require_post(exchange, RECEIVE_PACK)
                    give_back = partial(self._admission.give_back, exchange.seat)
                    await self._pushes.receive(repo, exchange, give_back)
        except Busy as error:
            raise HttpError(HTTPStatus.SERVICE_UNAVAILABLE, f"{error}\n", {"retry-after": "1"}) from None
        except PacketError as error:
            raise HttpError(HTTPStatus.BAD_REQUEST, f"{error}\n") from None
        except (AnswerFailed, UploadPackError, GitmirrorError) as error:
            log.info("%s: %s failed: %s", exchange.client, action, str(error) or "the response could not be made")
            raise HttpError(HTTPStatus.INTERNAL_SERVER_ERROR, "git failed; try again\n") from None
        except OSError as error:
            if error.errno not in EXHAUSTED:
                raise
            log.warning("%s: %s failed: %s", exchange.client, action, error)
            raise HttpError(HTTPStatus.SERVICE_UNAVAILABLE, f"{EXHAUSTED_TEXT}\n", {"retry-after": "5"}) from None

    async def _guest_kit(self, exchange: Exchange) -> None:
        seat, authorization = exchange.seat, exchange.headers.get("authorization")
        exchange.guest = seat.guest = self._gate.guest_of(seat.socket_of, seat.client, authorization)
        await self._routes.guest_kit(exchange)

    async def _attach(self, exchange: Exchange, path: str, session: str, commit: str, name: str) -> None:
        """Takes an attachment. It takes no slot, because a guest that sends slowly would block the others."""
        repo = await self._find(exchange, path)
        if repo is None:
            raise _not_here(path)
        there = self._still_there(path, repo)
        await self._attachments.receive(repo, exchange, Target(session, commit, name), there)

    def _still_there(self, path: str, repo: Repo) -> Callable[[], bool]:
        """Whether the repository that a guest found at a path is still there, after it was waited for."""
        catalog = self._gate.catalog
        return lambda: self._gate.catalog is catalog or self._gate.find_any(path) == repo

    def _may_have(self, exchange: Exchange, path: str, repo: Repo) -> Callable[[], Awaitable[None]]:
        """Raises HttpError if the guest may no longer read the repository: it may have become private meanwhile."""

        async def may_have() -> None:
            current = await self._find(exchange, path)
            if current is None or current.id != repo.id:
                raise _not_here(path)

        return may_have

    async def _lfs(self, exchange: Exchange, path: str, rest: str) -> None:
        """Answers what is below `info/lfs`; errors are documents there. Takes a slot only for a file that is here."""
        try:
            repo = await self._find(exchange, path) or await self._brought(exchange, path, f"info/lfs/{_quoted(rest)}")
            if repo is None:
                if (upstream := self._upstream_of(path)) is not None:
                    raise _see(f"{upstream}/info/lfs/{_quoted(rest)}")
                raise _not_here(path)
            may_have = self._may_have(exchange, path, repo)
            await self._lfs_routes.handle(exchange, repo, path, rest, self._admission, may_have)
        except HttpError as error:
            if exchange.started:
                raise
            text, headers = as_lfs(error)
            await exchange.answer(error.status, text, headers, error.reason)

    async def _find(self, exchange: Exchange, path: str) -> Repo | None:
        """The repository at a path, if this guest may read it. Raises HttpError if its token cannot be looked up."""
        seat, authorization = exchange.seat, exchange.headers.get("authorization")
        exchange.guest = seat.guest = self._gate.guest_of(seat.socket_of, seat.client, authorization)
        try:
            return await self._gate.find_for(path, authorization, exchange.guest)
        except GitmirrorError as error:
            log.warning("%s: its token cannot be looked up: %s", exchange.client, error.message)
            text = "the token cannot be looked up; try again\n"
            raise HttpError(HTTPStatus.SERVICE_UNAVAILABLE, text, {"retry-after": "5"}) from None

    async def _brought(self, exchange: Exchange, path: str, rest: str | None) -> Repo | None:
        """The repository at a path once it is here, if `[[allow]]` lets it come for this guest.

        Raises HttpError if that takes longer than a guest waits: a redirect to `rest` at the upstream, else 503.
        """
        return await self._find(exchange, path) if await self._wishes.over_http(exchange, path, rest) else None

    def _redirect(self, path: str, action: str, service: str) -> None:
        """Redirects a fetch to its upstream by an HttpError, if the path begins with a known upstream host."""
        upstream = self._upstream_of(path)
        if upstream is not None and service == UPLOAD_PACK:
            raise _see(f"{upstream}/{_below(action, service)}")

    def _upstream_of(self, path: str) -> str | None:
        """The URL of a repository that is not here, if the path begins with a known upstream host."""
        host, _, rest = path.removeprefix("/").partition("/")
        base = self._gate.catalog.upstream_host(host) or self._wishes.http_host(host)
        return None if base is None or rest.count("/") < 1 or ".." in rest else f"{base}/{_quoted(rest)}"

    async def _info_refs(self, exchange: Exchange, repo: Repo, service: str) -> None:
        require_read(exchange)
        body: bytes | None
        if service == RECEIVE_PACK:
            body = _announced(service) + await self._pushes.advertise(repo, exchange)
        elif service != UPLOAD_PACK:
            raise HttpError(HTTPStatus.FORBIDDEN, "only git's smart protocol is served: fetch and push\n")
        elif _version(exchange) == 2:
            body = await self._engine.advertise(repo)
        elif exchange.method == "GET":
            # Streamed, because 512 guests that read slowly would otherwise hold 512 copies of the refs in memory.
            sink = ResultSink(exchange, service, "advertisement", _announced(service))
            await self._engine.advertise_v0(repo, _version(exchange), sink)
            await sink.finish()
            return
        else:
            body = None
        headers = {"content-type": f"application/x-{service}-advertisement", **NO_CACHE}
        if body is not None:
            headers["content-length"] = str(len(body))
        await exchange.start(HTTPStatus.OK, headers)
        if body is not None and exchange.method != "HEAD":
            await exchange.send(body)
        await exchange.finish()

    async def _fetch(self, exchange: Exchange, repo: Repo, path: str) -> None:
        """Answers one command. Holds a slot only while answering, so that slow clients block nobody."""
        _require_post(exchange, UPLOAD_PACK)
        version, sink = _version(exchange), ResultSink(exchange, UPLOAD_PACK)
        caller = replace(exchange.caller, on_last=sink.make_last)
        catalog, engine = self._gate.catalog, self._engine
        with contextlib.ExitStack() as stack:
            share = stack.enter_context(engine.budget.share(exchange.seat.peer))
            body, request = None, None
            with exchange.receiving_within(self._admission.limits.idle_timeout):
                if version == 2:
                    request = await self._v2_request(exchange, share)
                else:
                    body = stack.enter_context(contextlib.closing(Spool()))
                    await _receive_into(body, exchange, share)
            share.answering()
            if request is not None and (refusal := await prepare(engine, exchange.seat, repo, request)):
                await sink.send(refusal)
                return await sink.finish()
            if self._gate.catalog is not catalog:
                # It may have become private or been removed while the guest sent its request.
                await self._may_have(exchange, path, repo)()
            asked = time.monotonic()
            async with self._admission.place(exchange.seat):
                if request is not None:
                    caller = replace(caller, waited=time.monotonic() - asked)
                    await engine.answer(repo, request, sink, caller, exchange.stream)
                elif body is not None:
                    await engine.answer_v0(repo, body, version, sink, caller, exchange.stream)
                await sink.finish()

    async def _v2_request(self, exchange: Exchange, share: Share) -> V2Request | None:
        """Reads one request. Looks up a compressed one without unpacking it.

        Every guest that checks out a tip sends the same compressed bytes: with this, a hydration of 2,310 files cost
        6.8 ms instead of 8.2.
        """
        memo, size = self._engine.memo, exchange.coded_size or 0
        if not LARGE // 2 < size <= MOST_CODED:
            return await V2Reader(memo).read(exchange.receive, share)
        unpacked = 0

        async def receive() -> bytes:
            nonlocal unpacked
            data = await exchange.receive()
            unpacked += len(data)
            return data

        coded = await exchange.receive_coded(share.grow)
        if (known := memo.find(coded)) is not None:
            share.adopt(known.charge)
            return known.request
        request = await V2Reader(memo).read(receive, share)
        if request is not None:
            memo.remember(coded, request, share.charge, unpacked)
        return request


def _require_post(exchange: Exchange, service: str) -> None:
    if exchange.method != "POST":
        raise HttpError(HTTPStatus.METHOD_NOT_ALLOWED, "only POST is answered here\n", {"allow": "POST"})
    if exchange.headers.get("content-type") != f"application/x-{service}-request":
        raise HttpError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"the content-type must be application/x-{service}-request\n"
        )


def _not_here(path: str) -> HttpError:
    return HttpError(HTTPStatus.NOT_FOUND, f"{path} is not mirrored here\n")


def _see(location: str) -> HttpError:
    return HttpError(HTTPStatus.TEMPORARY_REDIRECT, f"not mirrored here; see {location}\n", {"location": location})


def _announced(service: str) -> bytes:
    return packet(f"# service={service}\n".encode()) + FLUSH


def _version(exchange: Exchange) -> int:
    """The protocol version that the `Git-Protocol` header asks for; the highest if it lists several."""
    matches = [_VERSION.fullmatch(word) for word in exchange.headers.get("git-protocol", "").split(":")]
    return max((int(match[1]) for match in matches if match), default=0)


async def _receive_into(body: Spool, exchange: Exchange, share: Share) -> None:
    while data := await exchange.receive():
        if body.size + len(data) > MOST_REQUEST_BYTES:
            raise HttpError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the request is too large\n")
        await share.grow(len(data))
        body.write(data)


def _below(action: str, service: str) -> str:
    """The same request at another server, below the URL of a repository."""
    return f"{action}?service={service}" if action == "info/refs" else action


def _quoted(path: str) -> str:
    return quote(path, safe="/")
