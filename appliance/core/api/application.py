"""The ASGI application: routes made from the declared operations, access, validation, and errors as problems."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import replace
from http import HTTPStatus
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from appliance import __version__
from appliance.core.api import problem
from appliance.core.api.access import Access, token_in
from appliance.core.api.declaration import JSON, NDJSON, Call, Lasting, Operation, Reply, Scope, preferred
from appliance.core.api.parsing import read_body, read_path, read_query
from appliance.core.api.problem import VERSION_HEADER, Problem, headers_of, kind_of, problem_document
from appliance.core.api.slots import OPERATOR, Slots
from appliance.core.api.streams import GuardedStream, Pieces, Stream
from appliance.core.errors import GitmirrorError, NotServing

log = logging.getLogger(__name__)

MOST_PROGRESS = 1000
"""Lines of progress that wait for a slow client. It misses those that come meanwhile, and not the result."""


def make_application(operations: Iterable[Operation], access: Access, slots: Slots | None = None) -> Starlette:
    """The application that answers `operations`. Each request's `state.is_operator` says whether it needs no token.

    `slots` bounds the requests that read mirrors at once.
    """
    slots = slots or Slots()
    by_path: dict[str, dict[str, Operation]] = {}
    for operation in operations:
        by_path.setdefault(operation.path, {})[operation.method] = operation
    routes = [_route(path, methods, access, slots) for path, methods in by_path.items()]
    application = Starlette(routes=routes, exception_handlers={HTTPException: _NoRoute(access).answer})
    # A redirect to the path without a slash at its end would tell anybody which routes there are.
    application.router.redirect_slashes = False
    return application


def _route(path: str, methods: Mapping[str, Operation], access: Access, slots: Slots) -> Route:
    # The name of a file takes the slashes in it.
    template = path.replace("{path}", "{path:path}")
    route = Route(template, _Endpoint(methods, access, slots).answer, methods=sorted(methods))
    # In the pattern of Starlette, `$` also matches before a line break at the end, and `.` matches none.
    route.path_regex = re.compile(rf"{route.path_regex.pattern.removesuffix('$')}\Z", re.DOTALL)
    return route


class _Endpoint:
    """Answers the methods of one route."""

    def __init__(self, methods: Mapping[str, Operation], access: Access, slots: Slots) -> None:
        self._methods = methods
        self._access = access
        self._slots = slots

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
        authorization = request.headers.get("authorization", "")
        lasting = await self._access.admit(operation.scope, authorization, is_operator)
        call = Call(
            path=read_path(request),
            query=read_query(operation, request),
            body=await read_body(operation, request),
            accept=request.headers.get("accept", "*/*"),
            tell=_tell_nobody,
            is_operator=is_operator,
            last_event_id=request.headers.get("last-event-id"),
            lasting=lasting,
        )
        if operation.tells and preferred(call.accept, (JSON, NDJSON)) == NDJSON:
            return Stream(_told(operation, call), media_type=NDJSON)
        has_body = request.method != "HEAD"
        if not operation.reads_mirror:
            return await _response(await operation.respond(call), lasting, has_body=has_body)
        slot = await self._slots.take(OPERATOR if is_operator else token_in(authorization))
        try:
            result = await operation.respond(call)
            # Operators are trusted to end what they begin, and hold only some of the slots.
            response = await _response(
                result, lasting, has_body=has_body, at_end=slot.release, is_paced=not is_operator
            )
        except BaseException:
            slot.release()
            raise
        if not isinstance(response, Stream):
            slot.release()
        return response


def _tell_nobody(text: str) -> None:
    pass


async def _told(operation: Operation, call: Call) -> AsyncIterator[bytes]:
    """Progress as it comes, and then the result or the error, one JSON document a line."""
    lines: asyncio.Queue[bytes | None] = asyncio.Queue()

    def tell(text: str) -> None:
        if lines.qsize() < MOST_PROGRESS:
            lines.put_nowait(_line({"progress": text}))

    async def work() -> bytes:
        try:
            result = await operation.respond(replace(call, tell=tell))
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


def _line(document: Any) -> bytes:
    return json.dumps(document).encode() + b"\n"


async def _response(
    result: Any,
    lasting: Lasting,
    *,
    has_body: bool,
    at_end: Callable[[], None] = lambda: None,
    is_paced: bool = False,
) -> Response:
    """The response to send. One that is a stream lasts while `lasting` allows it; `at_end` is called when it ended.

    With `is_paced`, its client has to take it at a least pace.
    """
    reply = result if isinstance(result, Reply) else Reply(result)
    if reply.stream is None:
        if reply.media_type == JSON:
            content = json.dumps(reply.document).encode() + b"\n"
        else:
            content = str(reply.document).encode("utf-8", "replace")
        return Response(content, reply.status, dict(reply.headers), reply.media_type)
    # What fails at once still becomes a problem, because nothing was sent yet.
    first = await anext(reply.stream, b"")
    if not has_body:
        # The response to HEAD would wait for the end of a body that it does not send.
        await reply.stream.aclose()
    pieces = Pieces(first if has_body else b"", reply.stream, at_end)
    return GuardedStream(pieces, reply.status, dict(reply.headers), reply.media_type, lasting, is_paced=is_paced)


def _problem_response(error: GitmirrorError) -> Response:
    content = json.dumps(problem_document(error)).encode() + b"\n"
    return Response(content, int(kind_of(error).status), headers_of(error), problem.MEDIA_TYPE)


def _stopping() -> GitmirrorError:
    return NotServing("serve is stopping", hint="try again when it has started again")


def _bug(error: Exception) -> GitmirrorError:
    # What it says may have paths of this node, and credentials; the log has all of it.
    return Problem(problem.BUG, f"serve failed to do this: {type(error).__name__}", hint="see the log of serve")


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
            # Starlette lists them in the order of a set.
            methods = dict(error.headers or {}).get("Allow", "").split(", ")
            allowed = {"Allow": ", ".join(sorted(methods))}
            words = f"there is no {request.method!a} here"
            return _problem_response(
                Problem(problem.NO_METHOD, words, hint=f"it has {allowed['Allow']}", headers=allowed)
            )
        hint = f"GET /v1/openapi.json lists the routes of this version, {__version__}"
        headers = {VERSION_HEADER: __version__}
        return _problem_response(Problem(problem.NO_ROUTE, "there is no such route", hint=hint, headers=headers))
