"""The OpenAPI 3.1 description, made from the declared operations (spec.openapis.org/oas/v3.1.0)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from appliance import __version__
from appliance.core.api import problem, schemas
from appliance.core.api.declaration import JSON, NDJSON, Answer, Call, Operation, Scope
from appliance.core.api.problem import ProblemKind

PATH = "/v1/openapi.json"
_PARAMETERS = {
    "owner": "The part of the repository's name before the slash.",
    "repo": "The part of the repository's name after the slash.",
    "session": "The whole name of the session.",
    "path": "The path of a file or directory; slashes need no escape.",
    "id": "The number of the token.",
    "name": "The name.",
    "turn": "The number of the turn, from 1.",
}


def described(operations: Sequence[Operation]) -> list[Operation]:
    """The operations, with one more that returns their description."""
    made: dict[str, Any] = {}

    async def respond(call: Call) -> Any:
        return made

    whole = Operation(
        "GET", PATH, "describe", "This description", Scope.NOTHING, respond,
        {200: Answer("An OpenAPI 3.1 document.", {"type": "object"})},
    )  # fmt: skip
    all_of_them = [*operations, whole]
    made |= description(all_of_them)
    return all_of_them


def description(operations: Sequence[Operation]) -> dict[str, Any]:
    """The OpenAPI document of `operations`."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "gitmirror",
            "version": __version__,
            "description": "A hot git mirror on a node. The operator's socket needs no token; the admin port does.",
        },
        "paths": paths,
        "components": {
            "schemas": {"Problem": schemas.PROBLEM},
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "`gitmirror.pyz api-token issue --scope read|operate`.",
                }
            },
        },
    }


def _operation(operation: Operation) -> dict[str, Any]:
    document: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "description": _details(operation),
        "parameters": [*_path_parameters(operation), *_query_parameters(operation)],
        "responses": _responses(operation),
    }
    if operation.scope is not Scope.NOTHING:
        document["security"] = [{"token": []}]
    else:
        document["security"] = []
    if operation.body is not None:
        document["requestBody"] = {
            "required": bool(operation.body.get("required")),
            "content": {JSON: {"schema": operation.body}},
        }
    return document


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
            "description": _PARAMETERS[name],
            "schema": {"type": "string", "minLength": 1},
        }
        for name in re.findall(r"{(\w+)}", operation.path)
    ]


def _query_parameters(operation: Operation) -> list[dict[str, Any]]:
    return [
        {"name": parameter.name, "in": "query", "description": parameter.description, "schema": parameter.schema}
        for parameter in operation.query
    ]


def _responses(operation: Operation) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for status, answer in operation.answers.items():
        content: dict[str, Any] = {answer.media_type: {"schema": answer.schema} if answer.schema else {}}
        content |= {media_type: {"schema": schema} if schema else {} for media_type, schema in answer.also.items()}
        if operation.tells:
            content[NDJSON] = {}
        responses[str(status)] = {"description": answer.description, "content": content}
    for kind in problems_of(operation):
        known = responses.get(str(int(kind.status)))
        words = f"{known['description']} {kind.title}." if known else f"{kind.title}."
        responses[str(int(kind.status))] = {
            "description": words,
            "content": {problem.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
    return responses


def problems_of(operation: Operation) -> list[ProblemKind]:
    """Every kind of problem that an operation may answer with, each once."""
    always = [problem.INVALID, problem.CODING]
    if operation.scope is not Scope.NOTHING:
        always += [problem.UNAUTHORIZED, problem.UNAVAILABLE, problem.STOPPING]
    if operation.scope in (Scope.OPERATE, Scope.SOCKET):
        always.append(problem.FORBIDDEN)
    if operation.body is not None:
        always.append(problem.TOO_LARGE_BODY)
    return list(dict.fromkeys([*always, *operation.problems]))
