"""The description: a valid document of OpenAPI 3.1 that cannot differ from the routes: both are made at once."""

from __future__ import annotations

import asyncio
import re
from types import SimpleNamespace
from typing import Any

import jsonschema_rs
import pytest
import schemathesis
from schemathesis.specs.openapi.definitions import OPENAPI_31_VALIDATOR
from starlette.routing import Route

from appliance.core.api import problem
from appliance.core.api.api_token_routes import ApiTokenRoutes
from appliance.core.api.attachment_routes import AttachmentRoutes
from appliance.core.api.compose import compose_api
from appliance.core.api.disk_routes import DiskRoutes
from appliance.core.api.event_routes import EventRoutes
from appliance.core.api.fleet_routes import FleetRoutes
from appliance.core.api.guest_routes import KnownGuestRoutes
from appliance.core.api.mirror_routes import MirrorRoutes
from appliance.core.api.node_routes import NodeRoutes
from appliance.core.api.openapi import description, problems_of
from appliance.core.api.problem import KINDS, Problem, error_of, http_problem, problem_document
from appliance.core.api.record_routes import RecordRoutes
from appliance.core.api.session_routes import SessionRoutes
from appliance.core.observability.event_stream import EventStream
from tests.api.server import ApiServer
from tests.api.wire import Wire


@pytest.fixture(scope="module")
def application() -> Any:
    """The API of a `serve`, whose routes are not called here."""
    nothing: Any = object()
    tokens: Any = SimpleNamespace(holder_of=nothing)
    return compose_api(nothing, nothing, EventStream(), tokens)


@pytest.fixture(scope="module")
def document(application: Any) -> dict[str, Any]:
    """Its description."""
    [endpoint] = [route.endpoint for route in application.routes if route.path == "/v1/openapi.json"]
    [operation] = endpoint.__self__._methods.values()
    made = asyncio.run(operation.respond(None))
    assert isinstance(made, dict)
    return made


def operations(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """By method and path."""
    return {
        (method.upper(), path): operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


def schemas_in(document: Any) -> list[dict[str, Any]]:
    """Every JSON Schema in it."""
    if isinstance(document, list):
        return [schema for each in document for schema in schemas_in(each)]
    if not isinstance(document, dict):
        return []
    own = [document["schema"]] if isinstance(document.get("schema"), dict) else []
    return own + [schema for each in document.values() for schema in schemas_in(each)]


def test_it_is_valid(document: dict[str, Any]) -> None:
    """By the schema of OpenAPI 3.1, and each JSON Schema in it by that of JSON Schema 2020-12 with its patterns."""
    assert [str(error) for error in OPENAPI_31_VALIDATOR.iter_errors(document)] == []
    found = schemas_in(document)
    assert len(found) > 100
    for schema in found:
        jsonschema_rs.meta.validate({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema})
        jsonschema_rs.Draft202012Validator({**schema, "components": document["components"]})


def test_a_tool_that_reads_descriptions_finds_every_operation(document: dict[str, Any]) -> None:
    loaded = schemathesis.openapi.from_dict(document)
    found: list[Any] = [each.ok() for each in loaded.get_all_operations()]  # type: ignore[union-attr]
    assert {(each.method.upper(), each.path) for each in found} == set(operations(document))


def test_routes_and_description_are_the_same(application: Any, document: dict[str, Any]) -> None:
    """Every method of every route is described, and nothing else is. HEAD comes with GET."""
    routed = {
        (method, route.path.replace("{path:path}", "{path}"))
        for route in application.routes
        if isinstance(route, Route)
        for method in route.methods or ()
        if method != "HEAD"
    }
    assert routed == set(operations(document))
    assert ("GET", "/v1/openapi.json") in routed
    assert ("POST", "/v1/repos") in routed


def test_everything_that_is_declared_is_there(document: dict[str, Any]) -> None:
    nothing: Any = object()
    rooms: list[Any] = [NodeRoutes(nothing), MirrorRoutes(nothing), SessionRoutes(nothing, nothing)]
    rooms += [
        DiskRoutes(nothing),
        KnownGuestRoutes(nothing),
        AttachmentRoutes(nothing, nothing),
        RecordRoutes(nothing, nothing),
        ApiTokenRoutes(nothing),
        FleetRoutes(nothing),
        EventRoutes(EventStream()),
    ]
    declared = {(each.method, each.path): each.name for room in rooms for each in room.operations()}
    found = {key: each["operationId"] for key, each in operations(document).items()}
    assert found == declared | {("GET", "/v1/openapi.json"): "describe"}


def test_no_route_hides_another(application: Any) -> None:
    """Routes are tried in order, and a name in braces matches any word."""
    paths = [re.sub(r"{path(:path)?}", "a.txt", route.path) for route in application.routes]
    for route, path in zip(application.routes, paths, strict=True):
        words = re.sub(r"{(\w+)}", r"w-\1", path)
        first = next(each for each in application.routes if each.path_regex.match(words))
        assert first is route, f"{route.path} is hidden by {first.path}"


def test_operations_have_their_own_names_and_say_what_they_need(document: dict[str, Any]) -> None:
    names = [operation["operationId"] for operation in operations(document).values()]
    assert len(names) == len(set(names))
    for (_, path), operation in operations(document).items():
        assert {each["name"] for each in operation["parameters"] if each["in"] == "path"} == set(
            re.findall(r"{(\w+)}", path)
        )
        if path == "/v1/openapi.json":
            assert operation["security"] == []
        else:
            assert operation["security"][0].keys() == {"token"}
            assert {"401", "503"} <= set(operation["responses"])
        assert "400" in operation["responses"]


def test_what_an_operation_may_answer_is_described(server: ApiServer) -> None:
    """Each status that the tests of the API see here is one of its operation's."""
    responses = {key: set(each["responses"]) for key, each in operations(description(server.operations)).items()}
    with Wire(server.path) as wire:
        for (method, path), statuses in responses.items():
            if path in ("/v1/events", "/v1/pieces", "/v1/wait", "/v1/stubborn", "/v1/gate", "/v1/text", "/v1/tell"):
                continue
            for target, body, headers in (
                (path.replace("{name}", "x"), None, {}),
                (path.replace("{name}", "%ff"), b"[]", {}),
                (f"{path}?dance=1", b"{}", {}),
                (path, b"x" * 2**19, {}),
                (path, b"{}", {"Content_Encoding": "br"}),
            ):
                more: dict[str, Any] = dict(headers)
                answer = wire.ask(method, target, body, **more)
                if (method, path) != ("POST", "/v1/break"):
                    assert str(answer.status) in statuses, (method, target, answer)


def test_problems_are_told_apart_by_their_type() -> None:
    """And come back as the error that they were."""
    assert len({kind.type for kind in KINDS}) == len(KINDS)
    for kind in KINDS:
        error = error_of(problem_document(Problem(kind, "words", hint="hint")))
        assert isinstance(error, Problem)
        assert (error.kind, error.message, error.hint, error.exit_code) == (kind, "words", "hint", kind.exit_code)
    assert error_of({"type": "about:blank", "title": "Oh"}).message == "Oh"


def test_every_kind_of_problem_is_declared_or_can_come_to_any(server: ApiServer) -> None:
    """The bug is left out on purpose: it says that something is not as described."""
    always = {kind for operation in server.operations for kind in problems_of(operation)}
    assert {problem.INVALID, problem.UNAUTHORIZED, problem.FORBIDDEN, problem.STOPPING, problem.CODING} <= always
    assert problem.BUG not in always


@pytest.mark.parametrize("status", [400, 408, 415, 431, 501, 503, 505])
def test_what_http_refuses_keeps_its_status(status: int) -> None:
    media_type, text = http_problem(status, "words\n")
    assert media_type == "application/problem+json"
    assert f'"status": {status}' in text
    assert text.endswith("}\n")
