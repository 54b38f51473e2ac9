"""The OpenAPI document itself: it is valid, everything in it has a name and words, and it takes no false body."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from typing import Any, cast

import jsonschema_rs
import pytest
from schemathesis.specs.openapi.definitions import OPENAPI_31_VALIDATOR

from appliance.core.api.compose import declare
from appliance.core.api.openapi import description
from appliance.core.backup.writer import BackupReport
from appliance.core.models import Hydration
from appliance.core.serving.fetch.cached_response import CacheResult
from appliance.core.serving.ports.guest_routes import HTTP, SNAPSHOT

nothing = cast(Any, None)
DOCUMENT = description(declare(nothing, nothing, nothing))
COMPONENTS = DOCUMENT["components"]["schemas"]
OPERATIONS = {
    f"{method} {path}": operation
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
}


def test_it_is_openapi() -> None:
    """By the meta-schema of version 3.1, and so is each schema by that of JSON Schema 2020-12."""
    OPENAPI_31_VALIDATOR.validate(DOCUMENT)
    for name, schema in COMPONENTS.items():
        assert jsonschema_rs.meta.is_valid({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}), name
    with pytest.raises(jsonschema_rs.ValidationError):
        OPENAPI_31_VALIDATOR.validate({**DOCUMENT, "paths": {"/v1/x": {"get": {"responses": {"200": {}}}}}})


def _inside(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _inside(each)


def test_every_reference_leads_somewhere_and_every_component_is_used() -> None:
    """So that generated clients have a type for each, and none too many."""
    used = {each["$ref"] for each in _inside(DOCUMENT) if "$ref" in each}
    assert used == {f"#/components/schemas/{name}" for name in COMPONENTS}


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_object_in_a_response_is_a_component(name: str) -> None:
    """An object with keys of its own would be a type without a name."""
    for response in OPERATIONS[name]["responses"].values():
        for content in response["content"].values():
            assert not [each for each in _inside(content.get("schema", {})) if "properties" in each]


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_is_described(name: str) -> None:
    """Its id, its tag, its words, its parameters with examples that it takes itself."""
    operation = OPERATIONS[name]
    assert re.fullmatch("[a-z]+(-[a-z]+)*", operation["operationId"])
    assert [each["operationId"] for each in OPERATIONS.values()].count(operation["operationId"]) == 1
    assert {tag["name"] for tag in DOCUMENT["tags"]} >= set(operation["tags"])
    assert operation["summary"] and operation["description"]
    for parameter in operation["parameters"]:
        assert parameter["description"].endswith("."), parameter
        # A cursor is nobody's to make up, and neither is the last commit of a session.
        assert parameter["name"] in ("after", "tip") or _is_valid(parameter["schema"], parameter["example"]), parameter
    if "requestBody" in operation:
        content = operation["requestBody"]["content"]["application/json"]
        assert _is_valid(content["schema"], content["example"])


def test_every_tag_is_used() -> None:
    """The description of a tag nothing has would mislead."""
    used = [tag for operation in OPERATIONS.values() for tag in operation["tags"]]
    assert set(used) == {tag["name"] for tag in DOCUMENT["tags"]}


def _is_valid(schema: dict[str, Any], value: Any) -> bool:
    whole = {**schema, "components": {"schemas": COMPONENTS}}
    return jsonschema_rs.validator_for(whole).is_valid(value)


REPO = {
    "name": "acme/widgets", "url": "https://h/acme/widgets", "branch": None, "source": "cli", "state": "fresh",
    "interval": 60.0, "enabled": True, "private": False, "readers": None,
}  # fmt: skip
BACKUP = {
    "to": "/backups", "at": "2026-01-31T12:00:00.000Z", "bytes": 1, "written": 1, "files": 1, "removed": 0,
    "repositories": 1, "turns": 1, "problems": [],
}  # fmt: skip
CHANGE = {"ref": "refs/heads/main", "old": None, "new": "0" * 40}


@pytest.mark.parametrize(
    ("name", "good", "broken"),
    [
        ("Repo", REPO, {"state": "fine"}),
        ("Repo", REPO, {"source": "api"}),
        ("Repo", REPO, {"interval": "60s"}),
        ("Backup", BACKUP, {"bytes": -1}),
        ("Backup", BACKUP, {"problems": None}),
        ("RefChange", CHANGE, {"new": "0" * 39}),
        ("RefChange", CHANGE, {"old": ""}),
    ],
)
def test_a_broken_body_is_seen(name: str, good: dict[str, Any], broken: dict[str, Any]) -> None:
    """A word that there is not, a type that it is not, a key that is missing."""
    schema = {"$ref": f"#/components/schemas/{name}"}
    assert _is_valid(schema, good)
    assert not _is_valid(schema, {**good, **broken})
    for key in good:
        assert not _is_valid(schema, {other: value for other, value in good.items() if other != key})


def test_documents_of_other_rooms_have_the_same_keys() -> None:
    """The schemas are written by hand, so a key that a room adds must be added there as well."""
    assert [field.name for field in fields(BackupReport)] == list(COMPONENTS["Backup"]["properties"])
    hydration = COMPONENTS["Hydration"]["properties"]
    assert {field.name for field in fields(Hydration)} | {"id", "at"} == set(hydration)
    assert {*CacheResult, SNAPSHOT} == set(hydration["way"]["enum"])
    assert HTTP in hydration["protocol"]["enum"]
