"""Reads a request as its operation declares it. What is wrong is refused, and the problem names the field."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qsl

from starlette.requests import Request

from appliance.core.api.declaration import Operation
from appliance.core.api.problem import INVALID, TOO_LARGE_BODY, Problem
from appliance.core.units import parse_duration

LARGEST_BODY = 2**18
"""The most bytes of a request's body: a refresh of 2,000 repositories by name has 70 KB. A megabyte of nested JSON
blocks the loop for a tenth of a second."""
BODY_TIMEOUT = 30.0
"""Seconds that a body may take to arrive."""
MOST_FIELDS = 32
"""The most fields in a query."""
DURATIONS = ("interval", "ttl")
"""The keys of bodies that may be text such as `5m`; their value is in seconds."""
_DESCRIBED = "GET /v1/openapi.json describes it"
_SURROGATE = re.compile("[\ud800-\udfff]")


def read_path(request: Request) -> dict[str, str]:
    """The names in the path. Only the name of a file may have bytes that are not UTF-8. Raises Problem."""
    path = {name: str(value) for name, value in request.path_params.items()}
    for name, value in path.items():
        if "\0" in value or (name != "path" and _SURROGATE.search(value)):
            raise Problem(INVALID, f"{name} in the path is no text", hint="send UTF-8 without NUL")
    return path


def read_query(operation: Operation, request: Request) -> dict[str, Any]:
    """The parameters that were given, as their schemas want them. Raises Problem.

    Unknown ones are refused because they are misspelt, and repeated ones because only one of the values would count.
    """
    known = {parameter.name: parameter for parameter in operation.query}
    text = request.scope["query_string"].decode("latin-1")
    try:
        fields = parse_qsl(text, keep_blank_values=True, errors="surrogateescape", max_num_fields=MOST_FIELDS)
    except ValueError:
        raise Problem(INVALID, f"the query has more than {MOST_FIELDS} fields", hint="send fewer") from None
    query: dict[str, Any] = {}
    for name, value in fields:
        if name not in known:
            some = ", ".join(known) or "none"
            raise Problem(INVALID, f"there is no parameter {ascii(name)[:100]} here", hint=f"there are: {some}")
        if name in query:
            raise Problem(INVALID, f"{name} is given twice", hint=f"send one {name}")
        if "\0" in value or _SURROGATE.search(value):
            raise Problem(INVALID, f"{name} is no text", hint="send UTF-8 without NUL")
        query[name] = known[name].read(value)
    return query


async def read_body(operation: Operation, request: Request) -> dict[str, Any]:
    """The body as its schema wants it, without the keys that are null: they mean the same as leaving the key out.

    A body that the operation has no use for is ignored. Raises Problem.
    """
    data = await _received(operation, request)
    if operation.body is None or (not data and not operation.body.get("required")):
        return {}
    try:
        document = json.loads(data, object_pairs_hook=_object, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise Problem(INVALID, "the body is not JSON", hint=_DESCRIBED) from None
    if not isinstance(document, dict):
        raise Problem(INVALID, "the body is not a JSON object", hint=_DESCRIBED)
    operation.validate(document)
    for key in DURATIONS:
        if isinstance(document.get(key), str):
            document[key] = parse_duration(document[key])
            # As a number it has limits.
            operation.validate(document)
    return {key: value for key, value in document.items() if value is not None}


async def _received(operation: Operation, request: Request) -> bytes:
    data = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            async for piece in request.stream():
                data += piece
                if len(data) > LARGEST_BODY:
                    if operation.body is None:
                        raise Problem(INVALID, "this operation takes no body", hint="leave the body out")
                    words = f"the body has more than {LARGEST_BODY} bytes"
                    raise Problem(TOO_LARGE_BODY, words, hint="name fewer things in one request")
    except TimeoutError:
        words = f"the body took more than {BODY_TIMEOUT:g} seconds"
        # Waiting for the rest of it would take as long again.
        close = {"Connection": "close"}
        raise Problem(INVALID, words, hint="send it again", headers=close) from None
    return bytes(data)


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An object as I-JSON (RFC 7493) allows it: each key once, and no half of a surrogate pair."""
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise Problem(INVALID, f"the body has {ascii(key)[:100]} twice", hint="send each key once")
        for text in (key, *(value if isinstance(value, list) else (value,))):
            if isinstance(text, str) and _SURROGATE.search(text):
                raise Problem(INVALID, f"{ascii(key)[:100]} in the body is no text", hint="send UTF-8")
        made[key] = value
    return made


def _refuse_constant(name: str) -> Any:
    raise Problem(INVALID, f"the body has {name}, which is no JSON", hint="send a number")
