"""The description is true: what a schema-driven tester sends gets an answer that the description has.

Schemathesis makes requests from `GET /v1/openapi.json` itself, valid ones and invalid ones; a good share of them name
things that exist. Each is sent to a real `serve` as each kind of caller.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any, cast

import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import load_all_checks, not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.schemas import APIOperation, BaseSchema
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.access.conftest import TOKEN
from tests.api.populated import FAILING, OWN, READ, SECRET, SESSIONS, Caller, Populated

load_all_checks()
_Operation = APIOperation[Any, Any, Any, Any]
_Case = Case[Any]
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
CALLERS = ("socket", "operate", "read", "nobody", "revoked")
JSON, NDJSON, PROBLEM = "application/json", "application/x-ndjson", "application/problem+json"
CASES = int(os.environ.get("API_CASES", "4"))
"""Cases of each operation, valid and as many invalid ones, for a caller with a token; twice as many by the socket."""
SLOW_ONES = {
    "backup",
    "verify",
    "refresh",
    "refresh-repo",
    "heal",
    "remove-repo",
    "add-repo",
    "drop-session",
    "lease-disk",
}
"""Operations that take a tenth of a second and more, of which the quick run tries fewer cases."""
_PATHS = ("list-disks", "get-disk", "list-guests", "get-guest")
"""Operations whose answers have paths of this machine."""
_settings = settings(
    derandomize=True,
    deadline=None,
    database=None,
    # Nothing is made smaller: much is not undone, so a case may do something else when it is sent again.
    phases=[Phase.generate],
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Populated]:
    """A node for all tests of this module."""
    populated = Populated(tmp_path_factory.mktemp("populated"))
    yield populated
    populated.close()


@pytest.fixture(scope="module")
def document(node: Populated) -> dict[str, Any]:
    """The description that `serve` gives."""
    found: dict[str, Any] = node.ask("GET", "/v1/openapi.json")
    return found


@pytest.fixture(scope="module")
def schema(document: dict[str, Any]) -> BaseSchema:
    """The description for Schemathesis. Here, a key that it does not have is an error too."""
    closed = deepcopy(document)
    for operation in [operation for path in closed["paths"].values() for operation in path.values()]:
        _close(operation["responses"])
        # Each caller has its own token, or none.
        operation["security"] = []
    _close(closed["components"]["schemas"])
    return schemathesis.openapi.from_dict(closed)


def _close(schema: Any) -> None:
    """Forbids keys that are not declared, in all objects."""
    if isinstance(schema, dict):
        if "properties" in schema and schema.get("type") == "object":
            schema.setdefault("additionalProperties", False)
        for each in schema.values():
            _close(each)
    elif isinstance(schema, list):
        for each in schema:
            _close(each)


class _Tester:
    """Sends cases as one caller and checks the responses."""

    def __init__(self, node: Populated, kind: str) -> None:
        self.node = node
        self.kind = kind
        self.caller: Caller = node.caller(kind)
        self.sent = 0
        self.statuses: dict[str, set[int]] = {}

    def strategy(self, operation: _Operation, mode: GenerationMode) -> st.SearchStrategy[_Case]:
        """Cases of an operation. Most are about things that exist, whatever else is wrong with them."""

        @st.composite
        def cases(draw: st.DrawFn) -> _Case:
            case: _Case = draw(operation.as_strategy(generation_mode=mode))
            if case.path_parameters and draw(st.sampled_from((True, True, True, False))):
                for name in case.path_parameters:
                    case.path_parameters[name] = draw(st.sampled_from(self._known(name)))
                if "owner" in case.path_parameters:
                    case.path_parameters |= self._repo(draw, operation)
            case.headers["Accept"] = draw(st.sampled_from(["*/*", *sorted(_media_types(operation))]))
            self._bound(draw, case, mode)
            return case

        return cases()

    def _known(self, name: str) -> list[str]:
        return {
            "session": list(SESSIONS),
            "path": ["README.md", "src", "run.sh", "docs/latest", "../../HEAD", "src/../README.md", "new-1.txt"],
            "disk": [self.node.lease["id"]],
            "guest": ["vm-7"],
            "attachment": ["transcript.json"],
            "id": [str(self.node.read_token["id"]), str(self.node.revoked["id"])],
        }.get(name, ["1"])

    def _repo(self, draw: st.DrawFn, operation: _Operation) -> dict[str, str]:
        names = [OWN] if operation.method != "get" else [READ, READ, SECRET, FAILING]
        if "session" in operation.path or "disks" in operation.path:
            names = [READ]
        owner, repo = draw(st.sampled_from(names)).split("/")
        return {"owner": owner, "repo": repo}

    def _bound(self, draw: st.DrawFn, case: _Case, mode: GenerationMode) -> None:
        """Keeps a case on this machine and short, and makes most of the valid ones name what exists."""
        body: Any = case.body
        if not isinstance(body, dict):
            return
        if isinstance(body.get("url"), str):
            body["url"] = draw(st.sampled_from(self.node.urls))
        if isinstance(body.get("to"), str):
            body["to"] = draw(st.sampled_from([str(self.node.place / "elsewhere"), "relative", "/proc/none"]))
        if mode is GenerationMode.POSITIVE:
            if body.get("name") and draw(st.booleans()):
                body["name"] = draw(st.sampled_from([READ, OWN, "acme/other", "acme/one-more"]))
            if body.get("repo") and draw(st.booleans()):
                body["repo"] = draw(st.sampled_from([SECRET, READ]))
            if body.get("branch") and operation_of(case) == "lease-disk":
                body["branch"] = "main"
            if body.get("commit") and draw(st.booleans()):
                body["commit"] = self.node.commit
            if operation_of(case) == "add-guest":
                self._bound_guest(draw, body)
            elif body.get("repos") and draw(st.booleans()):
                body["repos"] = [OWN, READ][: len(body["repos"])]
            if case.operation.method == "patch" and body.get("interval"):
                given = body["interval"]
                body["interval"] = "10m" if isinstance(given, str) else max(given, 600.0)

    def _bound_guest(self, draw: st.DrawFn, body: dict[str, Any]) -> None:
        number = draw(st.integers(1, 10**9))
        body |= {"name": f"vm-{number}", "sessions": ["fix-*"], "repos": [SECRET], "token": draw(st.booleans())}
        body["unix"] = str(self.node.place / "sockets" / draw(st.sampled_from([f"{number}.sock", "none/v.sock"])))
        body["address"] = f"127.{number % 250}.{number % 249}.{number % 248}"

    def run(self, operation: _Operation, mode: GenerationMode, count: int) -> None:
        """Sends `count` cases. Raises what Schemathesis finds."""

        @settings(_settings, max_examples=count)
        @given(self.strategy(operation, mode))
        def test(case: _Case) -> None:
            self.send(case)

        test()

    def send(self, case: _Case) -> None:
        """Sends one case and checks its response."""
        operation = case.operation
        if self.kind in ("socket", "operate"):
            self.node.prepare(operation.definition.raw["operationId"], case.path_parameters)
        response = case.call(base_url=self.node.url, session=self.caller)
        self.sent += 1
        self.statuses.setdefault(operation.definition.raw["operationId"], set()).add(response.status_code)
        if response.headers.get("content-type", [""])[0] == NDJSON:
            _check_lines(operation, response.status_code, response.content)
        was_bounded = isinstance(case.body, dict) and {"url", "to"} & case.body.keys()
        case.validate_response(response, checks=CHECKS, excluded_checks=[negative_data_rejection] * bool(was_bounded))
        said = response.content + repr(response.headers).encode()
        assert TOKEN.encode() not in said and b"user:secret" not in said, "it has a credential"
        # The path of a drive is what a lease is about.
        if self.kind not in ("socket", "operate") and operation_of(case) not in _PATHS:
            assert str(self.node.serve.state).encode() not in said, "it tells where the state is"
        if self.kind in ("nobody", "revoked") and operation.path != "/v1/openapi.json":
            assert response.status_code == 401, response.status_code


def operation_of(case: _Case) -> str:
    """The name of the operation that a case calls."""
    return str(case.operation.definition.raw["operationId"])


def _media_types(operation: _Operation) -> set[str]:
    responses = operation.definition.raw["responses"]
    return {media_type for answer in responses.values() for media_type in answer["content"]} - {PROBLEM}


def _check_lines(operation: _Operation, status: int, content: bytes) -> None:
    """Progress, and then the result or the problem of the same operation."""
    *progress, last = map(json.loads, content.splitlines())
    assert all(line.keys() == {"progress"} and isinstance(line["progress"], str) for line in progress), progress
    assert last.keys() in ({"result"}, {"error"}), last
    described: Any = operation.definition.raw["responses"]
    schema = {
        **described[str(status)]["content"][NDJSON]["x-item-schema"],
        "components": operation.schema.raw_schema["components"],
    }
    for line in (*progress, last):
        jsonschema_rs.validator_for(schema).validate(line)


def _operations(schema: BaseSchema) -> list[_Operation]:
    return [cast(Any, result).ok() for result in schema.get_all_operations()]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", CALLERS)
def test_every_answer_of_thousands_is_as_described(node: Populated, schema: BaseSchema, kind: str) -> None:
    """Cases of each operation, valid and invalid. `operate` may do all but what is the socket's alone."""
    count = {"socket": 2 * CASES, "operate": CASES, "read": CASES}.get(kind, -(-CASES // 3))
    try_all(_Tester(node, kind), schema, lambda name: min(count, 15) if name in SLOW_ONES else count)


def try_all(tester: _Tester, schema: BaseSchema, count: Callable[[str], int]) -> None:
    """Tries all operations, and tells all that was found together."""
    found: list[str] = []
    for operation in _operations(schema):
        name = operation.definition.raw["operationId"]
        modes = [GenerationMode.POSITIVE]
        if operation.body or operation.query:
            modes.append(GenerationMode.NEGATIVE)
        for mode in modes:
            try:
                tester.run(operation, mode, count(name))
            except (Exception, FailureGroup) as error:
                found.append(f"--- {name}, {mode.value} cases, as {tester.kind}:\n{error}")
    print(f"{tester.kind}: {tester.sent} cases; {tester.statuses}")
    assert not found, "\n".join(found)
    if tester.kind == "socket":
        # Otherwise only errors were looked at.
        only_errors = {name for name, statuses in tester.statuses.items() if min(statuses) >= 300}
        # The node is alone, so its fleet has no node to forget.
        assert only_errors == {"forget-node"}


@pytest.mark.parametrize("kind", ["socket", "read"])
def test_a_method_that_a_route_does_not_have_is_named(node: Populated, schema: BaseSchema, kind: str) -> None:
    """405, with all that it has in `Allow`; HEAD is there wherever GET is."""
    caller = node.caller(kind)
    known = {"owner": "acme", "repo": "widgets", "session": SESSIONS[0], "path": "README.md", "id": "1", "disk": "1f0c"}
    known |= {"guest": "vm-7", "turn": "1", "attachment": "report.txt", "node": "node-3", "api_token": "1"}
    for path, methods in schema.raw_schema["paths"].items():
        declared = {method.upper() for method in methods} | ({"HEAD"} if "get" in methods else set())
        for method in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"} - declared:
            response = caller.request(method, node.url + path.format(**known))
            assert response.status_code == 405, (method, path)
            assert set(response.headers["allow"].split(", ")) == declared, (method, path)
            if method != "HEAD":
                assert response.json()["type"] == "urn:gitmirror:problem:no-method"


@pytest.mark.parametrize("kind", ["nobody", "revoked"])
def test_without_a_token_nobody_learns_which_routes_there_are(node: Populated, schema: BaseSchema, kind: str) -> None:
    """Whatever the method and the path: 401, and what to send instead."""
    caller = node.caller(kind)
    for path in [*schema.raw_schema["paths"], "/v1", "/v1/", "/v1/nothing", "/v1/repos/", "/v1/../v1/status"]:
        for method in ("GET", "HEAD", "POST", "DELETE", "OPTIONS"):
            if (path, method) in {("/v1/openapi.json", "GET"), ("/v1/openapi.json", "HEAD")}:
                continue
            response = caller.request(method, node.url + path)
            assert response.status_code == 401, (method, path)
            assert response.headers["www-authenticate"].startswith("Bearer")
