"""How a route is declared. Routing, validation, the OpenAPI description and `docs/api.md` are all made from it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any, Protocol

import fastjsonschema

from appliance.core.api.problem import INVALID, Problem, ProblemKind
from appliance.core.api.schemas import DURATION_PATTERN
from appliance.core.models import Tell
from appliance.core.text import escape

Schema = Mapping[str, Any]
JSON = "application/json"
NDJSON = "application/x-ndjson"


class Scope(StrEnum):
    """What a caller must be allowed to do. The operator's socket may do everything."""

    NOTHING = "none"
    READ = "read"
    OPERATE = "operate"
    SOCKET = "socket"
    """Not even a token that may operate: it writes where the caller says, or gives up evidence."""


@dataclass(frozen=True)
class Parameter:
    """A parameter in the query. `schema` is a JSON Schema of type string, integer or boolean."""

    name: str
    schema: Schema
    description: str
    example: str = ""
    parse: Callable[[str], str] | None = None
    """Turns valid text into the value. It raises ValueError that says what is allowed."""

    def read(self, text: str) -> str | int | bool:
        """The value that `text` stands for. Raises Problem."""
        kind = self.schema["type"]
        if kind == "boolean":
            if text not in ("true", "false"):
                raise Problem(INVALID, f"{self.name} is {ascii(text)[:100]}", hint="it must be true or false")
            return text == "true"
        if kind == "integer":
            if not text.isascii() or not text.removeprefix("-").isdigit() or len(text) > 18:
                raise Problem(INVALID, f"{self.name} is {ascii(text)[:100]}", hint="it must be a whole number")
            value: str | int = int(text)
        else:
            value = text
        self._check(value)
        if self.parse is None:
            return value
        try:
            return self.parse(text)
        except ValueError as error:
            raise Problem(INVALID, f"{self.name} is {ascii(text)[:100]}", hint=f"it must be {error}") from None

    @cached_property
    def _validate(self) -> Callable[[Any], Any]:
        return compiled(self.schema, self.name)

    def _check(self, value: str | int) -> None:
        self._validate(value)


@dataclass(frozen=True)
class Header:
    """A header of a response. `is_required` is false for one that only some responses have."""

    schema: Schema
    description: str
    is_required: bool = True


@dataclass(frozen=True)
class Answer:
    """One response: its description, its media type, and its JSON Schema if it is JSON."""

    description: str
    schema: Schema | None = None
    media_type: str = JSON
    also: Mapping[str, Schema] = field(default_factory=dict)
    """Other media types that a caller may ask for by `Accept`."""
    headers: Mapping[str, Header] = field(default_factory=dict)
    """Headers that clients may build on."""


IsAllowed = Callable[[], bool]


class Lasting(Protocol):
    """Opens a context for a response that lasts, with a function that says whether its caller still may have it.

    Soon after the caller no longer may, `cut` is called, within the context, for a response that did not end by itself.
    """

    def __call__(self, cut: Callable[[], None] = ..., /) -> AbstractAsyncContextManager[IsAllowed]: ...


@dataclass(frozen=True)
class Call:
    """A validated request, as the function that answers it gets it.

    `path` has the names in the route's path, `query` and `body` only what was given. `tell` reports progress; it
    costs nothing when the caller did not ask for it. `is_operator` is true on the operator's socket. `accept` and
    `last_event_id` are the headers of these names. `lasting` binds a response that lasts to its caller's token.
    """

    path: Mapping[str, str]
    query: Mapping[str, Any]
    body: Mapping[str, Any]
    accept: str
    tell: Tell
    is_operator: bool
    last_event_id: str | None
    lasting: Lasting

    @property
    def repo(self) -> str:
        """OWNER/REPO of the path."""
        return f"{self.path['owner']}/{self.path['repo']}"

    def accepts(self, media_type: str, *, rather_than: str) -> bool:
        """Whether the caller asks for `media_type` and does not rank `rather_than` before it."""
        return preferred(self.accept, (rather_than, media_type)) == media_type


@dataclass(frozen=True)
class Reply:
    """A response: a JSON `document`, or bytes that `stream` yields.

    `stream` starts before the status is sent, so it may raise an error before its first piece.
    """

    document: Any = None
    status: int = 200
    media_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)
    stream: AsyncGenerator[bytes, None] | None = None


@dataclass(frozen=True)
class Operation:
    """One method of one route. `respond` returns a Reply, or a document for status 200."""

    method: str
    path: str
    name: str
    summary: str
    scope: Scope
    respond: Callable[[Call], Awaitable[Any]]
    answers: Mapping[int, Answer]
    problems: tuple[ProblemKind, ...] = ()
    query: tuple[Parameter, ...] = ()
    body: Schema | None = None
    details: str = ""
    example: Mapping[str, Any] | None = None
    """A body for the `curl` line in the documentation."""
    tells: bool = False
    """Whether it reports progress, for a caller that accepts NDJSON."""
    reads_mirror: bool = False
    """Whether it runs git to read a mirror. Only so many requests do that at once."""

    @cached_property
    def validate(self) -> Callable[[Any], Any]:
        """Checks a body, which is a JSON object. Raises Problem."""
        return compiled(self.body or {}, "the body")


def compiled(schema: Schema, what: str) -> Callable[[Any], Any]:
    """A function that raises Problem unless a value fits the schema."""
    check = fastjsonschema.compile({**schema}, use_default=False)

    def validate(value: Any) -> Any:
        try:
            return check(value)
        except fastjsonschema.JsonSchemaValueException as error:
            hint = "GET /v1/openapi.json describes it"
            raise Problem(INVALID, f"{what} is not valid: {_words_of(error)}", hint=hint) from None

    return validate


def _words_of(error: fastjsonschema.JsonSchemaValueException) -> str:
    """What is wrong, by the name of the key."""
    keys = error.value.keys() if isinstance(error.value, dict) else set()
    if error.rule == "required":
        return f"it lacks {', '.join(key for key in error.rule_definition if key not in keys)}"
    if error.rule == "additionalProperties":
        unknown = ascii(", ".join(sorted(keys - error.definition["properties"].keys())))[:200]
        return f"there is no {unknown} here, but there are {', '.join(error.definition['properties'])}"
    name = str(error.name).removeprefix("data").removeprefix(".")
    if error.rule == "enum":
        words = f"{name} must be one of {', '.join(str(word) for word in error.rule_definition if word is not None)}"
    elif error.rule == "pattern" and error.rule_definition == DURATION_PATTERN:
        words = f"{name} must be a duration such as 30s or 2h"
    else:
        words = str(error.message).removeprefix("data").removeprefix(".")
    return escape(words.strip())[:300]


def preferred(accept: str, offered: tuple[str, ...]) -> str:
    """The media type of `offered` that an `Accept` header ranks highest; the first if it names none (RFC 9110)."""
    ranked: list[tuple[float, int, str]] = []
    ranges: dict[str, float] = {}
    for part in accept.split(","):
        name, *parameters = (word.strip().lower() for word in part.split(";"))
        quality = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    quality = float(parameter[2:])
                except ValueError:
                    quality = 0.0
        if name:
            ranges[name] = quality
    for place, media_type in enumerate(offered):
        family = f"{media_type.partition('/')[0]}/*"
        quality = next((ranges[name] for name in (media_type, family, "*/*") if name in ranges), 0.0)
        ranked.append((-quality, place, media_type))
    return min(ranked)[2]
