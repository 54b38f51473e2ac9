"""The ASGI application: routes made from the declared operations, access, validation, and errors as problems."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import replace
from http import HTTPStatus
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from appliance import __version__
from appliance.core.api import problem
from appliance.core.api.access import Access
from appliance.core.api.declaration import JSON, NDJSON, Call, Operation, Reply, Scope, preferred
from appliance.core.api.problem import VERSION_HEADER, Problem, kind_of, problem_document
from appliance.core.errors import GitmirrorError, NotServing

log = logging.getLogger(__name__)

LARGEST_BODY = 2**18
"""The most bytes of a request's body: a refresh of 2,000 repositories by name has 70 KB. A megabyte of nested JSON
blocks the loop for a tenth of a second."""
BODY_TIMEOUT = 30.0
"""Seconds that a body may take to arrive."""
MOST_FIELDS = 32
"""The most fields in a query."""
ENDPOINT = Callable[[Request], Awaitable[Response]]


def make_application(operations: Iterable[Operation], access: Access) -> Starlette:
    """The application that answers `operations`. Each request's `state.is_operator` says whether it needs no token."""
    by_path: dict[str, dict[str, Operation]] = {}
    for operation in operations:
        by_path.setdefault(operation.path, {})[operation.method] = operation
    routes = [
        Route(_starlette_path(path), _Endpoint(methods, access).answer, methods=sorted(methods))
        for path, methods in by_path.items()
    ]
    return Starlette(routes=routes, exception_handlers={HTTPException: _NoRoute(access).answer})


def _starlette_path(path: str) -> str:
    """A path that ends in a file's name takes the slashes in it."""
    return path.replace("{path}", "{path:path}")


class _Endpoint:
    """Answers the methods of one route."""

    def __init__(self, methods: Mapping[str, Operation], access: Access) -> None:
        self._methods = methods
        self._access = access

    async def answer(self, request: Request) -> Response:
        """The response to one request. Every error becomes a problem."""
        operation = self._methods["GET" if request.method == "HEAD" else request.method]
        try:
            return await self._answer(operation, request)
        except GitmirrorError as error:
            return _problem_response(error)
        except asyncio.CancelledError:
            # `serve` stops, or the caller has gone and nobody reads this.
            return _problem_response(_stopping())
        except ClientDisconnect:
            raise
        except Exception as error:
            log.exception("%s %s failed", operation.method, operation.path)
            return _problem_response(_bug(error))

    async def _answer(self, operation: Operation, request: Request) -> Response:
        is_operator = bool(request.state.is_operator)
        lasting = await self._access.admit(operation.scope, request.headers.get("authorization", ""), is_operator)
        call = Call(
            path=_path_of(request),
            query=_query_of(operation, request),
            body=await _body_of(operation, request),
            accept=request.headers.get("accept", "*/*"),
            tell=_tell_nobody,
            is_operator=is_operator,
            last_event_id=request.headers.get("last-event-id"),
            lasting=lasting,
        )
        if operation.tells and preferred(call.accept, (JSON, NDJSON)) == NDJSON:
            return StreamingResponse(_told(operation, call), media_type=NDJSON)
        return await _response(await operation.respond(call))


def _tell_nobody(text: str) -> None:
    pass


def _path_of(request: Request) -> dict[str, str]:
    path = {name: str(value) for name, value in request.path_params.items()}
    for value in path.values():
        if "\0" in value:
            raise Problem(problem.INVALID, "the path has a NUL", hint="no name holds one")
    return path


def _query_of(operation: Operation, request: Request) -> dict[str, Any]:
    """The parameters that were given, as their schemas want them. Unknown ones are refused: they are misspelt."""
    known = {parameter.name: parameter for parameter in operation.query}
    fields = request.query_params.multi_items()
    if len(fields) > MOST_FIELDS:
        raise Problem(problem.INVALID, f"the query has more than {MOST_FIELDS} fields", hint="send fewer")
    query: dict[str, Any] = {}
    for name, text in fields:
        if name not in known:
            some = ", ".join(known) or "none"
            raise Problem(problem.INVALID, f"there is no parameter {ascii(name)[:100]} here", hint=f"there are: {some}")
        if "\0" in text or any("\ud800" <= char <= "\udfff" for char in text):
            raise Problem(problem.INVALID, f"{name} is no text", hint="send UTF-8 without NUL")
        query[name] = known[name].read(text)
    return query


async def _body_of(operation: Operation, request: Request) -> dict[str, Any]:
    data = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            async for piece in request.stream():
                data += piece
                if len(data) > LARGEST_BODY:
                    hint = "name fewer things in one request"
                    raise Problem(problem.TOO_LARGE_BODY, f"the body has more than {LARGEST_BODY} bytes", hint=hint)
    except TimeoutError:
        words = f"the body took more than {BODY_TIMEOUT:g} seconds"
        raise Problem(problem.INVALID, words, hint="send it again") from None
    if operation.body is None or (not data and not operation.body.get("required")):
        return {}
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise Problem(problem.INVALID, "the body is not a JSON object", hint="GET /v1/openapi.json describes it")
    operation.validate(document)
    # A null means the same as leaving the key out.
    return {key: value for key, value in document.items() if value is not None}


async def _told(operation: Operation, call: Call) -> AsyncIterator[bytes]:
    """Progress as it comes, and then the result or the error, one JSON document a line."""
    lines: asyncio.Queue[bytes | None] = asyncio.Queue()

    def tell(text: str) -> None:
        lines.put_nowait(_line({"progress": text}))

    async def work() -> bytes:
        try:
            result = await operation.respond(_telling(call, tell))
            return _line({"result": result.document if isinstance(result, Reply) else result})
        except GitmirrorError as error:
            return _line({"error": problem_document(error)})
        except asyncio.CancelledError:
            return _line({"error": problem_document(_stopping())})
        except Exception as error:
            log.exception("%s %s failed", operation.method, operation.path)
            return _line({"error": problem_document(_bug(error))})

    working = asyncio.create_task(work())
    working.add_done_callback(lambda _: lines.put_nowait(None))
    try:
        while (line := await lines.get()) is not None:
            yield line
        yield await working
    except asyncio.CancelledError:
        working.cancel()
        yield await working
    finally:
        working.cancel()


def _telling(call: Call, tell: Callable[[str], None]) -> Call:
    return replace(call, tell=tell)


def _line(document: Any) -> bytes:
    return json.dumps(document).encode() + b"\n"


async def _response(result: Any) -> Response:
    reply = result if isinstance(result, Reply) else Reply(result)
    if reply.stream is None:
        if reply.media_type == JSON:
            content = json.dumps(reply.document).encode() + b"\n"
        else:
            content = str(reply.document).encode("utf-8", "replace")
        return Response(content, reply.status, dict(reply.headers), reply.media_type)
    stream = reply.stream
    # What fails at once still becomes a problem, because nothing was sent yet.
    first = await anext(stream, b"")

    async def pieces() -> AsyncIterator[bytes]:
        async with aclosing(stream):  # type: ignore[type-var]
            yield first
            async for piece in stream:
                yield piece

    return StreamingResponse(pieces(), reply.status, dict(reply.headers), reply.media_type)


def _problem_response(error: GitmirrorError) -> Response:
    headers = dict(error.headers) if isinstance(error, Problem) else {}
    content = json.dumps(problem_document(error)).encode() + b"\n"
    return Response(content, int(kind_of(error).status), headers, problem.MEDIA_TYPE)


def _stopping() -> GitmirrorError:
    return NotServing("serve is stopping", hint="try again when it has started again")


def _bug(error: Exception) -> GitmirrorError:
    return Problem(problem.BUG, f"serve failed to do this: {error!r}", hint="see the log of serve")


class _NoRoute:
    """Answers when no route has the path, or the route does not have the method."""

    def __init__(self, access: Access) -> None:
        self._access = access

    async def answer(self, request: Request, error: Exception) -> Response:
        """The problem. Without a token, nobody learns which routes there are."""
        assert isinstance(error, HTTPException)
        try:
            await self._access.admit(
                Scope.READ, request.headers.get("authorization", ""), bool(request.state.is_operator)
            )
        except GitmirrorError as refusal:
            return _problem_response(refusal)
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            allowed = {"Allow": dict(error.headers or {}).get("Allow", "")}
            words = f"there is no {request.method!a} here"
            return _problem_response(
                Problem(problem.NO_METHOD, words, hint=f"it has {allowed['Allow']}", headers=allowed)
            )
        hint = f"GET /v1/openapi.json lists the routes of this version, {__version__}"
        headers = {VERSION_HEADER: __version__}
        return _problem_response(Problem(problem.NO_ROUTE, "there is no such route", hint=hint, headers=headers))
