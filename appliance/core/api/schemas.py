"""JSON Schemas (2020-12) of what the API takes and returns: the objects that the commands print with `--json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Schema = Mapping[str, Any]

TEXT_PATTERN = r"^[^\x00]*$"
"""What git and the file system can take. `parsing` refuses halves of surrogate pairs: many clients know no pattern for
those."""

TEXT: Schema = {"type": "string"}
GIVEN_TEXT: Schema = {"type": "string", "minLength": 1, "maxLength": 4096, "pattern": TEXT_PATTERN}
OID: Schema = {"type": "string", "pattern": "^([0-9a-f]{40}|[0-9a-f]{64})$"}
TIME: Schema = {"type": "string", "format": "date-time"}
COUNT: Schema = {"type": "integer", "minimum": 0}
SECONDS: Schema = {"type": "number", "minimum": 0}
INTERVAL: Schema = {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1_000_000_000}
SWITCH: Schema = {"type": "boolean"}
MOMENT: Schema = {
    "type": "string",
    "format": "date-time",
    "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z$",
}
"""A time in UTC, as the database stores it."""
NAME: Schema = {"type": "string", "minLength": 1, "maxLength": 255, "pattern": TEXT_PATTERN}


def nullable(schema: Schema) -> Schema:
    """The schema, or null."""
    return {"anyOf": [schema, {"type": "null"}]}


def _or_null(schema: Schema) -> Schema:
    """The same as `nullable`. An error then says what is wrong, not that no alternative fits."""
    enum = {"enum": [*schema["enum"], None]} if "enum" in schema else {}
    return {**schema, "type": [schema["type"], "null"], **enum}


def one_of(*values: str) -> Schema:
    """One of these words."""
    return {"type": "string", "enum": list(values)}


def listed(schema: Schema) -> Schema:
    """A list."""
    return {"type": "array", "items": schema}


def document(**properties: Schema) -> Schema:
    """An object with all of these keys. It may get more keys in a later version."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def given(required: tuple[str, ...] = (), /, **properties: Schema) -> Schema:
    """A body: `required` keys and optional ones, which may also be null. Other keys are refused: they are misspelt."""
    fields = {name: schema if name in required else _or_null(schema) for name, schema in properties.items()}
    return {"type": "object", "properties": fields, "required": list(required), "additionalProperties": False}


def page(schema: Schema) -> Schema:
    """A page of a list: `next` is the `after` of the next page, or null at the end."""
    return document(items=listed(schema), next=nullable(TEXT))


STATE = one_of("new", "cloning", "fresh", "stale", "failing", "damaged", "disabled")
CHANGE = document(ref=TEXT, old=nullable(OID), new=nullable(OID))
LOST = listed(document(ref=TEXT, commit=OID))

REPO = document(
    name=TEXT, url=TEXT, branch=nullable(TEXT), source=one_of("config", "cli"), state=STATE, interval=SECONDS,
    enabled=SWITCH, private=SWITCH, readers=nullable(TEXT),
)  # fmt: skip
ADDED = document(**REPO["properties"], error=nullable(TEXT))
REPO_STATUS = document(
    name=TEXT, url=TEXT, branch=nullable(TEXT), state=STATE, tip=nullable(OID), lag=nullable(SECONDS),
    verified_at=nullable(TIME), last_error=nullable(TEXT), error=nullable(TEXT), hint=nullable(TEXT),
    retry_at=nullable(TIME), failures=COUNT, refs=COUNT, size=COUNT, sessions=COUNT, damage=nullable(TEXT),
    inspected_at=nullable(TIME), verified_whole_at=nullable(TIME), private=SWITCH, readers=nullable(TEXT),
)  # fmt: skip
REPO_WHOLE = document(**{**REPO["properties"], **REPO_STATUS["properties"]})
REMOVED = document(name=TEXT, purged=SWITCH)
PUSHES = document(accepted=COUNT, rejected=COUNT, off=nullable(TEXT), mend=nullable(TEXT))
CACHE = document(hits=COUNT, misses=COUNT, joined=COUNT, bytes=COUNT, budget=COUNT)
BACKUP_STATE = document(to=TEXT, at=nullable(TIME), age=nullable(SECONDS), bytes=nullable(COUNT), error=nullable(TEXT))
STORAGE = document(
    used=COUNT,
    budget=COUNT,
    by=document(
        mirrors=COUNT, answers=COUNT, workspaces=COUNT, disks=COUNT, lfs=COUNT, recordings=COUNT, database=COUNT
    ),
)
_LIVE: Mapping[str, Schema] = {
    "serving": SWITCH,
    "pid": COUNT,
    "git": nullable(TEXT),
    "http": nullable(TEXT),
    "admin": nullable(TEXT),
    "clients": COUNT,
    "audit_head": nullable(TEXT),
    "pushes": PUSHES,
    "warnings": listed(TEXT),
    "cache": CACHE,
    "backup": nullable(BACKUP_STATE),
}
STATUS = document(
    **_LIVE, version=TEXT, repos=listed(REPO_STATUS), storage=STORAGE,
    warmed={"type": "object", "additionalProperties": nullable(TEXT)},
)  # fmt: skip
PULSE = document(
    **_LIVE, connections={"type": "object", "additionalProperties": COUNT}, max_clients=COUNT, cloning=listed(TEXT)
)
REFRESHED = document(
    repo=TEXT, result=one_of("failed", "moved", "unchanged"), duration=SECONDS, moved=listed(CHANGE),
    error=nullable(TEXT), kind=nullable(TEXT),
)  # fmt: skip
PAST_REFRESH = document(
    id=COUNT, repo=TEXT, started_at=TIME, duration=SECONDS, result=one_of("failed", "moved", "unchanged"),
    moved=listed(CHANGE), error=nullable(TEXT), kind=nullable(TEXT),
)  # fmt: skip
INSPECTED = document(
    repo=TEXT, whole=nullable(SWITCH), full=SWITCH, seconds=nullable(SECONDS), damage=nullable(TEXT),
    faults=listed(TEXT), lost=LOST, error=nullable(TEXT),
)  # fmt: skip
HEALED = document(repo=TEXT, whole=SWITCH, done=listed(TEXT), lost=LOST, evidence=nullable(TEXT), damage=nullable(TEXT))
BACKED_UP: Schema = {"type": "object"}
ACCEPTED_LOSS = document(accepted=SWITCH, found=COUNT)
SESSION = document(
    repo=TEXT, session=TEXT, ref=TEXT, tip=OID, base=nullable(OID), turns=COUNT, commits=COUNT, files_changed=COUNT,
    insertions=COUNT, deletions=COUNT, first_at=TIME, last_at=TIME, client=TEXT, kept=SWITCH, archived=SWITCH,
    bytes=COUNT,
)  # fmt: skip
DROPPED = document(repo=TEXT, session=TEXT)
PROBLEM = document(type=TEXT, title=TEXT, status=COUNT, detail=TEXT, hint=TEXT)
