"""The OpenAPI 3.1 description, made from the declared operations (spec.openapis.org/oas/v3.1.0)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from functools import cache, partial
from http import HTTPStatus
from typing import Any

from appliance import __version__
from appliance.core.api import problem, schemas, slots
from appliance.core.api.declaration import JSON, NDJSON, Answer, Call, Header, Operation, Schema, Scope
from appliance.core.api.problem import ProblemKind

PATH = "/v1/openapi.json"
_TAGS = {
    "node": "The node as a whole.",
    "repos": "Its repositories: registering, refreshing, inspecting.",
    "mirror": "What is in a mirror, read without git.",
    "disks": "Workspaces as drives for the VM of a guest.",
    "guests": "Guests that are known by their socket, their address or a token.",
    "sessions": "What agents recorded.",
    "records": "What happened, and who may read.",
    "events": "What happens.",
}
_TAG_OF = {
    **dict.fromkeys(("repos", "refresh", "verify", "heal"), "repos"),
    **dict.fromkeys(("refs", "commits", "files"), "mirror"),
    **dict.fromkeys(("refreshes", "activity", "audit", "tokens", "api-tokens"), "records"),
    "disks": "disks",
    "guests": "guests",
    "sessions": "sessions",
    "events": "events",
}
"""By the first word of a path, or the first one behind the repository. Anything else is about the node."""
PATH_PARAMETERS = {
    "owner": ("The part of the repository's name before the slash.", "acme"),
    "repo": ("The part of the repository's name after the slash.", "widgets"),
    "session": ("The whole name of the session.", "fix-dns"),
    "path": ("The path of a file or directory; slashes need no escape.", "README.md"),
    "id": ("The number of the token.", "1"),
    "api_token": ("The number of the API token.", "2"),
    "disk": ("The id of the lease.", "1f0c2a9b"),
    "guest": ("The name of the guest.", "vm-7"),
    "node": ("The name of the node.", "node-3"),
    "name": ("The name.", "builder-7"),
    "turn": ("The number of the turn, from 1.", "1"),
    "attachment": ("The name of the attachment.", "transcript.json"),
}
_HEADERS = {
    HTTPStatus.UNAUTHORIZED: {"WWW-Authenticate": Header(schemas.TEXT, "Always `Bearer`, as RFC 6750 has it.")},
    HTTPStatus.SERVICE_UNAVAILABLE: {
        "Retry-After": Header(schemas.COUNT, "Seconds to wait, if that is known.", is_required=False)
    },
}
"""Headers of problems, by their status."""
_LARGE_HEAD = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE


def described(operations: Sequence[Operation]) -> list[Operation]:
    """The operations, with one more that returns their description."""
    all_of_them = list(operations)
    # Few ask for it, and it would take longer than all else that the API does at the start.
    made = cache(partial(description, all_of_them))

    async def respond(call: Call) -> Any:
        return await asyncio.to_thread(made)

    whole = Operation(
        "GET", PATH, "describe", "This description", Scope.NOTHING, respond,
        {200: Answer("An OpenAPI 3.1 document.", {"type": "object"})},
    )  # fmt: skip
    all_of_them.append(whole)
    return all_of_them


def description(operations: Sequence[Operation]) -> dict[str, Any]:
    """The OpenAPI document of `operations`."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation)
    components: dict[str, Any] = {}
    paths = _with_references(paths, components)
    _with_references(schemas.PROBLEM, components)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "gitmirror",
            "version": __version__,
            "description": "A hot git mirror on a node. The operator's socket needs no token; the admin port does. "
            f"At most {slots.MOST} requests read mirrors at once, and {slots.MOST_EACH} of one token. The others wait "
            f"for at most {slots.PATIENCE:g} seconds and then get status 503 with Retry-After.",
        },
        "tags": [{"name": name, "description": words} for name, words in _TAGS.items()],
        "paths": paths,
        "components": {
            "schemas": dict(sorted(components.items())),
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "`gitmirror.pyz api-token issue --scope read|operate`.",
                }
            },
        },
    }


def _with_references(value: Any, components: dict[str, Any]) -> Any:
    """The value with a reference in place of each schema that has a title; these are added to `components`."""
    if isinstance(value, list):
        return [_with_references(each, components) for each in value]
    if not isinstance(value, Mapping):
        return value
    found = {key: _with_references(each, components) for key, each in value.items()}
    # A property that is called `title` is a schema, and no text.
    if not isinstance(name := found.get("title"), str) or "type" not in found:
        return found
    del found["title"]
    assert components.setdefault(name, found) == found, f"two schemas are called {name}"
    return {"$ref": f"#/components/schemas/{name}"}


def _operation(operation: Operation) -> dict[str, Any]:
    document: dict[str, Any] = {
        "operationId": operation.name,
        "tags": [_tag_of(operation.path)],
        "summary": operation.summary,
        "description": _details(operation),
        "parameters": [*_path_parameters(operation), *_query_parameters(operation)],
        "responses": _responses(operation),
    }
    if operation.scope is Scope.NOTHING:
        document["security"] = []
    else:
        scopes = [str(operation.scope)] if operation.scope in (Scope.READ, Scope.OPERATE) else []
        document["security"] = [{"token": scopes}]
    if operation.body is not None:
        content: dict[str, Any] = {"schema": operation.body}
        if operation.example is not None:
            content["example"] = operation.example
        document["requestBody"] = {
            "required": bool(operation.body.get("required")),
            "content": {JSON: content},
        }
    return document


def _tag_of(path: str) -> str:
    words = path.removeprefix("/v1/").removeprefix("repos/{owner}/{repo}").strip("/").split("/")
    # A repository itself has no further word.
    return _TAG_OF.get(words[0] or "repos", "node")


def _details(operation: Operation) -> str:
    needs = {
        Scope.NOTHING: "Needs no token.",
        Scope.READ: "Scope: read.",
        Scope.OPERATE: "Scope: operate.",
        Scope.SOCKET: "On the operator's socket alone.",
    }[operation.scope]
    return f"{operation.details} {needs}".strip()


def _path_parameters(operation: Operation) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": PATH_PARAMETERS[name][0],
            "schema": {"type": "string", "minLength": 1},
            "example": PATH_PARAMETERS[name][1],
        }
        for name in re.findall(r"{(\w+)}", operation.path)
    ]


def _query_parameters(operation: Operation) -> list[dict[str, Any]]:
    return [
        {"name": parameter.name, "in": "query", "description": parameter.description, "schema": parameter.schema}
        | ({"example": parameter.read(parameter.example)} if parameter.example else {})
        for parameter in operation.query
    ]


def _responses(operation: Operation) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for status, answer in operation.answers.items():
        content: dict[str, Any] = {answer.media_type: {"schema": answer.schema} if answer.schema else {}}
        content |= {media_type: {"schema": schema} if schema else {} for media_type, schema in answer.also.items()}
        if operation.tells:
            content[NDJSON] = {"x-item-schema": _line_of(answer)}
        responses[str(status)] = _response(answer.description, content, answer.headers)
    for kind in problems_of(operation):
        known = responses.get(str(int(kind.status)))
        words = f"{known['description']} {kind.title}." if known else f"{kind.title}."
        content = {problem.MEDIA_TYPE: {"schema": schemas.PROBLEM}}
        responses[str(int(kind.status))] = _response(words, content, _HEADERS.get(kind.status, {}))
    # HTTP itself refuses it, whatever it was to be.
    content = {problem.MEDIA_TYPE: {"schema": schemas.PROBLEM}}
    responses[str(int(_LARGE_HEAD))] = _response("The request line and the headers are too large.", content, {})
    return responses


def _response(words: str, content: Mapping[str, Any], headers: Mapping[str, Header]) -> dict[str, Any]:
    response = {"description": words, "content": content}
    if headers:
        response["headers"] = {
            name: {"description": header.description, "required": header.is_required, "schema": header.schema}
            for name, header in headers.items()
        }
    return response


def _line_of(answer: Answer) -> Schema:
    """One line of NDJSON: any number with progress come, then one with the result or the error."""
    lines: tuple[Schema, ...] = (
        schemas.document(progress=schemas.TEXT),
        schemas.document(result=answer.schema or {}),
        schemas.document(error=schemas.PROBLEM),
    )
    return {"oneOf": lines}


def problems_of(operation: Operation) -> list[ProblemKind]:
    """Every kind of problem that an operation may answer with, each once."""
    always = [problem.INVALID, problem.CODING, problem.BUSY, problem.STOPPING]
    if operation.scope is not Scope.NOTHING:
        always += [problem.UNAUTHORIZED, problem.UNAVAILABLE]
    if operation.scope in (Scope.OPERATE, Scope.SOCKET):
        always += [problem.FORBIDDEN, problem.FAILED]
    if operation.body is not None:
        always.append(problem.TOO_LARGE_BODY)
    return list(dict.fromkeys([*always, *operation.problems]))
