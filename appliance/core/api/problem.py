"""Errors as `application/problem+json` (RFC 9457), and back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from appliance.core.errors import Conflict, GitmirrorError, NotFound, NotServing, TooLarge, TryLater, UsageError
from appliance.core.store.database import StoreError

MEDIA_TYPE = "application/problem+json"
VERSION_HEADER = "Gitmirror-Version"
"""Says which version does not know a route, so that its client can tell a person."""


@dataclass(frozen=True)
class ProblemKind:
    """One kind of problem: its `type` without the prefix, its status, and the exit code of a command that meets it."""

    name: str
    status: HTTPStatus
    title: str
    exit_code: int = 1

    @property
    def type(self) -> str:
        """The URI in the problem's document."""
        return f"urn:gitmirror:problem:{self.name}"


INVALID = ProblemKind("invalid", HTTPStatus.BAD_REQUEST, "The request is not valid", 2)
UNAUTHORIZED = ProblemKind("unauthorized", HTTPStatus.UNAUTHORIZED, "An API token is required")
FORBIDDEN = ProblemKind("forbidden", HTTPStatus.FORBIDDEN, "The API token may not do this")
NOT_FOUND = ProblemKind("not-found", HTTPStatus.NOT_FOUND, "There is no such thing")
NO_ROUTE = ProblemKind("no-route", HTTPStatus.NOT_FOUND, "There is no such route")
NO_METHOD = ProblemKind("no-method", HTTPStatus.METHOD_NOT_ALLOWED, "The route does not have this method")
CONFLICT = ProblemKind("conflict", HTTPStatus.CONFLICT, "It contradicts what is there", 2)
TOO_LARGE_BODY = ProblemKind("too-large-body", HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The request is too large", 2)
CODING = ProblemKind("encoding", HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "The body has an unknown content-encoding", 2)
TOO_LARGE = ProblemKind("too-large", HTTPStatus.UNPROCESSABLE_ENTITY, "The response would be too large")
FAILED = ProblemKind("failed", HTTPStatus.UNPROCESSABLE_ENTITY, "The operation failed")
BUG = ProblemKind("bug", HTTPStatus.INTERNAL_SERVER_ERROR, "serve has a defect")
UNAVAILABLE = ProblemKind("unavailable", HTTPStatus.SERVICE_UNAVAILABLE, "The database cannot be used")
BUSY = ProblemKind("busy", HTTPStatus.SERVICE_UNAVAILABLE, "Too much is being asked at once")
STOPPING = ProblemKind("stopping", HTTPStatus.SERVICE_UNAVAILABLE, "serve is stopping", 4)

KINDS = (
    INVALID, UNAUTHORIZED, FORBIDDEN, NOT_FOUND, NO_ROUTE, NO_METHOD, CONFLICT, TOO_LARGE_BODY, CODING, TOO_LARGE,
    FAILED, BUG, UNAVAILABLE, BUSY, STOPPING,
)  # fmt: skip


class Problem(GitmirrorError):
    """An error of a certain kind, with the headers that its response needs."""

    def __init__(
        self, kind: ProblemKind, message: str, *, hint: str = "", headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message, hint=hint, exit_code=kind.exit_code)
        self.kind = kind
        self.headers = headers or {}


def kind_of(error: GitmirrorError) -> ProblemKind:
    """The kind of problem that an error is."""
    if isinstance(error, Problem):
        return error.kind
    for raised, kind in (
        (NotFound, NOT_FOUND),
        (Conflict, CONFLICT),
        (TooLarge, TOO_LARGE),
        (TryLater, BUSY),
        (UsageError, INVALID),
        (NotServing, STOPPING),
        (StoreError, UNAVAILABLE),
    ):
        if isinstance(error, raised):
            return kind
    return INVALID if error.exit_code == INVALID.exit_code else FAILED


def headers_of(error: GitmirrorError) -> dict[str, str]:
    """The headers that the response to an error needs."""
    if isinstance(error, TryLater):
        return {"Retry-After": str(error.retry_after)}
    return dict(error.headers) if isinstance(error, Problem) else {}


def problem_document(error: GitmirrorError) -> dict[str, Any]:
    """The document of an error: `{type, title, status, detail, hint}`.

    It also has the `exit_code` of a command that meets the error, if that is another than the kind's.
    """
    kind = kind_of(error)
    document = {
        "type": kind.type,
        "title": kind.title,
        "status": int(kind.status),
        "detail": error.message,
        "hint": error.hint,
    }
    return document | ({} if error.exit_code == kind.exit_code else {"exit_code": error.exit_code})


def http_problem(status: int, text: str) -> tuple[str, str]:
    """The media type and the text of the problem for a request that HTTP itself refuses, such as a malformed head."""
    kind = next((kind for kind in (CODING, BUSY) if kind.status == status), INVALID)
    hint = {CODING: "send it plain or with gzip", BUSY: "try again"}.get(kind, "send HTTP/1.1 as RFC 9112 has it")
    document = problem_document(Problem(kind, text.strip(), hint=hint)) | {"status": status}
    return MEDIA_TYPE, json.dumps(document) + "\n"


def error_of(document: dict[str, Any]) -> GitmirrorError:
    """The error that a problem's document describes. One of an unknown type becomes a failed operation."""
    kind = next((kind for kind in KINDS if kind.type == document.get("type")), FAILED)
    error = Problem(kind, str(document.get("detail") or document.get("title")), hint=str(document.get("hint") or ""))
    error.exit_code = int(document.get("exit_code", kind.exit_code))
    return error
