"""The LFS server of the guests' port: the batch API, objects, locks (git-lfs, docs/api)."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from appliance.core.errors import GitmirrorError, NoRoom, NotFound, TooLarge, TryLater
from appliance.core.lfs.flight import Flight
from appliance.core.lfs.objects import LfsObjects
from appliance.core.lfs.pointers import Pointer
from appliance.core.models import Repo
from appliance.core.serving.fetch.transfers import Transfers, taken_of
from appliance.core.serving.net.acceptor import Busy
from appliance.core.serving.net.admission import Admission
from appliance.core.serving.net.http import Exchange, HttpError
from appliance.core.serving.net.http_files import send_file
from appliance.core.serving.net.http_pages import require_read
from appliance.core.serving.net.reading import Budget
from appliance.core.serving.ports.guest_routes import MayHave

log = logging.getLogger(__name__)

LFS_ROUTE = re.compile(r"(/.+)/info/lfs/(objects/batch|objects/[^/]+|locks(?:/.+)?)")
MEDIA = "application/vnd.git-lfs+json"
_LISTENER = "http"
OBJECT = "application/octet-stream"
SHAPE = "LFS file"
"""What `GET /v1/transfers` calls it."""
MOST_BODY = 2**20
"""Bytes of a batch request; git-lfs sends 100 objects, 14 kB."""
MOST_OBJECTS = 1000
WAIT = 20.0
"""Seconds that a guest waits for an upstream; git-lfs itself gives up after 30 (lfs.activitytimeout)."""
_OID = re.compile(r"[0-9a-f]{64}")
_SIZE = re.compile(r"[0-9]{1,15}")
_MOST_SIZE = 10**15
_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]{0,253}[A-Za-z0-9])?|\[[0-9a-fA-F:.]{2,45}\])(?::[0-9]{1,5})?")

_STATUS: tuple[tuple[type[GitmirrorError], HTTPStatus], ...] = (
    (NotFound, HTTPStatus.NOT_FOUND),
    (TooLarge, HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
    (NoRoom, HTTPStatus.INSUFFICIENT_STORAGE),
    (TryLater, HTTPStatus.SERVICE_UNAVAILABLE),
)


class LfsRoutes:
    """Answers the routes. `address` gives a listener's address for guests, `is_public` whether the config names it."""

    def __init__(
        self,
        objects: LfsObjects,
        budget: Budget,
        address: Callable[[str], str | None],
        is_public: Callable[[str], bool],
        transfers: Transfers,
    ) -> None:
        self._objects = objects
        self._budget = budget
        self._address = address
        self._is_public = is_public
        self._transfers = transfers

    async def handle(
        self, exchange: Exchange, repo: Repo, path: str, rest: str, admission: Admission, may_have: MayHave
    ) -> None:
        """Answers one request for what is below `path`/info/lfs. Raises HttpError.

        `may_have` is asked after each wait, in which the repository may have become private.
        """
        try:
            if not self._objects.is_on:
                await self._lead(repo, rest)
            elif rest == "objects/batch":
                await self._batch(exchange, repo, path, admission.limits.idle_timeout, may_have)
            elif rest.startswith("objects/"):
                await self._object(exchange, repo, rest.removeprefix("objects/"), admission, may_have)
            else:
                # git-lfs 3.3 goes on quietly after 501, and does not ask again.
                raise HttpError(HTTPStatus.NOT_IMPLEMENTED, f"the mirror knows no locks; {repo.url} may\n")
        except Busy as error:
            raise HttpError(HTTPStatus.SERVICE_UNAVAILABLE, f"{error}\n", {"retry-after": "1"}) from None
        except GitmirrorError as error:
            raise _http_error(error) from None

    async def _lead(self, repo: Repo, rest: str) -> None:
        """Redirects to the upstream's LFS server, because this node stores no objects."""
        endpoint = await self._objects.upstreams.endpoint(repo)
        if not endpoint.url:
            raise HttpError(HTTPStatus.NOT_FOUND, "this node stores no LFS objects, and its upstream is a directory\n")
        location = f"{endpoint.url}/{quote(rest, safe='/')}"
        text = f"this node stores no LFS objects; see {location}\n"
        raise HttpError(HTTPStatus.TEMPORARY_REDIRECT, text, {"location": location})

    async def _batch(self, exchange: Exchange, repo: Repo, path: str, seconds: float, may_have: MayHave) -> None:
        if exchange.method != "POST":
            raise HttpError(HTTPStatus.METHOD_NOT_ALLOWED, "only POST is answered here\n", {"allow": "POST"})
        document = await self._document(exchange, seconds)
        if document.get("operation") == "upload":
            text = f"gitmirror takes no LFS objects: push to {repo.url} (git config lfs.pushurl)\n"
            raise HttpError(HTTPStatus.FORBIDDEN, text)
        wanted, answers = _wanted(document)
        found = await self._objects.offer(repo, wanted, WAIT)
        await may_have()
        # The guest's own words go back to it, so that clients send them for the object, too.
        authorization = exchange.headers.get("authorization")
        header = {} if authorization is None else {"Authorization": authorization}
        base = f"{self._base(exchange)}{quote(path, safe='/:')}/info/lfs/objects"
        for pointer, fault in found.items():
            answer: dict[str, Any] = {"oid": pointer.oid, "size": pointer.size}
            if fault is None or isinstance(fault, TryLater):
                # git-lfs asks for an object again for half a minute, but not for a batch.
                href = f"{base}/{pointer.oid}?size={pointer.size}"
                answer |= {"authenticated": True, "actions": {"download": {"href": href, "header": header}}}
            else:
                answer |= {"error": {"code": int(_status(fault)), "message": fault.message}}
            answers.append(answer)
        text = json.dumps({"transfer": "basic", "objects": answers, "hash_algo": "sha256"})
        await exchange.answer(HTTPStatus.OK, text, {"content-type": MEDIA, "cache-control": "no-store"})

    async def _document(self, exchange: Exchange, seconds: float) -> Mapping[str, Any]:
        body = bytearray()
        with self._budget.share(exchange.seat.peer) as share:
            with exchange.receiving_within(seconds):
                while data := await exchange.receive():
                    if len(body) + len(data) > MOST_BODY:
                        raise HttpError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the request is too large\n")
                    await share.grow(len(data))
                    body += data
            try:
                document = json.loads(body)
            except (ValueError, RecursionError):
                document = None
        if not isinstance(document, dict):
            raise HttpError(HTTPStatus.BAD_REQUEST, "the request is no JSON object\n")
        return document

    def _base(self, exchange: Exchange) -> str:
        """The address by which this guest reached us, as in the kit that it gets: the public one, else what it says."""
        address, host = self._address(_LISTENER) or "", exchange.headers.get("host", "")
        if not self._is_public(_LISTENER) and _HOST.fullmatch(host):
            return f"http://{host}"
        # The path of a socket is no URL, and a client of HTTP/1.0 need not say more.
        return address.rstrip("/") if "://" in address else "http://localhost"

    async def _object(self, exchange: Exchange, repo: Repo, oid: str, admission: Admission, may_have: MayHave) -> None:
        require_read(exchange)
        if not _OID.fullmatch(oid):
            raise HttpError(HTTPStatus.UNPROCESSABLE_ENTITY, "an LFS object has 64 hex digits\n")
        given = exchange.query.get("size", "")
        size = int(given) if _SIZE.fullmatch(given) else None
        # No slot until it is here: an upstream that hangs would take all of them.
        found = await self._objects.open(repo, oid, size, WAIT)
        if isinstance(found, Flight):
            await self._stream(exchange, repo, found, may_have)
            return
        await may_have()
        with self._objects.stock.in_use(repo, oid), ExitStack() as stack:

            def begins(count: int) -> None:
                stack.enter_context(self._running(exchange, repo, oid, "hit", count))

            async with admission.place(exchange.seat):
                await send_file(exchange, found, oid, OBJECT, {}, begins)

    @contextmanager
    def _running(self, exchange: Exchange, repo: Repo, oid: str, way: str, size: int) -> Iterator[None]:
        """Lists an object among what guests are being sent, from now to the end of the block."""
        taken = taken_of(exchange.stream, exchange.body_from)
        transfer = self._transfers.begin(repo, oid, SHAPE, exchange.caller, taken)
        transfer.way, transfer.size = way, lambda: size
        try:
            yield
        finally:
            self._transfers.end(transfer)

    async def _stream(self, exchange: Exchange, repo: Repo, flight: Flight, may_have: MayHave) -> None:
        """Sends an object as it arrives."""
        size, offset = flight.pointer.size, 0
        file = flight.open()
        flight.readers += 1
        try:
            ready = await flight.ready_beyond(0)
            await may_have()
            headers = {"content-type": OBJECT, "content-length": str(size), "etag": f'"{flight.pointer.oid}"'}
            await exchange.start(HTTPStatus.OK, headers)
            with self._running(exchange, repo, flight.pointer.oid, "miss", size):
                while exchange.method != "HEAD" and offset < size:
                    await exchange.send_file(file, offset, ready - offset)
                    offset = ready
                    ready = await flight.ready_beyond(offset) if offset < size else size
                await exchange.finish()
        finally:
            flight.readers -= 1
            os.close(file)


def as_lfs(error: HttpError) -> tuple[str, dict[str, str]]:
    """The body and the headers of an error, as the LFS API has them."""
    return json.dumps({"message": error.text.strip()}), {**error.headers, "content-type": MEDIA}


def _wanted(document: Mapping[str, Any]) -> tuple[list[Pointer], list[dict[str, Any]]]:
    """The objects that a batch request asks for, and answers to those that cannot be. Raises HttpError."""
    if document.get("operation") != "download":
        raise HttpError(HTTPStatus.UNPROCESSABLE_ENTITY, "the operation must be download\n")
    if document.get("hash_algo", "sha256") != "sha256":
        raise HttpError(HTTPStatus.CONFLICT, "the hash algorithm must be sha256\n")
    objects = document.get("objects")
    if not isinstance(objects, list):
        raise HttpError(HTTPStatus.UNPROCESSABLE_ENTITY, "the request names no objects\n")
    if len(objects) > MOST_OBJECTS:
        text = f"a batch may have {MOST_OBJECTS} objects\n"
        raise HttpError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, text)
    wanted: dict[Pointer, None] = {}
    wrong: list[dict[str, Any]] = []
    for each in objects:
        oid, size = (each.get("oid"), each.get("size")) if isinstance(each, dict) else (None, None)
        if not isinstance(oid, str) or type(size) is not int or size < 0:
            raise HttpError(HTTPStatus.UNPROCESSABLE_ENTITY, "an object must have an oid and a size\n")
        if _OID.fullmatch(oid) and size < _MOST_SIZE:
            wanted[Pointer(oid, size)] = None
        else:
            message = "the oid must be 64 hex digits, and the size below a petabyte"
            wrong.append({"oid": oid[:200], "size": size, "error": {"code": 422, "message": message}})
    return list(wanted), wrong


def _status(error: GitmirrorError) -> HTTPStatus:
    return next((status for kind, status in _STATUS if isinstance(error, kind)), HTTPStatus.BAD_GATEWAY)


def _http_error(error: GitmirrorError) -> HttpError:
    headers = {"retry-after": str(error.retry_after)} if isinstance(error, TryLater) else {}
    return HttpError(_status(error), f"{error.message}\n", headers)
