"""JSON Schemas (2020-12) of what the API takes and returns: the objects that the commands print with `--json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from appliance.core.git.failures import Kind
from appliance.core.models import State

Schema = Mapping[str, Any]

TEXT_PATTERN = r"^[^\x00]*$"
"""What git and the file system can take. `parsing` refuses halves of surrogate pairs: many clients know no pattern for
those."""
DURATION_PATTERN = r"^[0-9]{1,12}(\.[0-9]{1,9})?(ms|s|m|h|d)$"

TEXT: Schema = {"type": "string"}
GIVEN_TEXT: Schema = {"type": "string", "minLength": 1, "maxLength": 4096, "pattern": TEXT_PATTERN}
OID: Schema = {"type": "string", "pattern": "^([0-9a-f]{40}|[0-9a-f]{64})$"}
TIME: Schema = {"type": "string", "format": "date-time"}
COUNT: Schema = {"type": "integer", "minimum": 0}
SECONDS: Schema = {"type": "number", "minimum": 0}
SWITCH: Schema = {"type": "boolean"}
MOMENT: Schema = {"type": "string", "minLength": 1, "maxLength": 40}
"""A time, or a duration before now."""
NAME: Schema = {"type": "string", "minLength": 1, "maxLength": 255, "pattern": TEXT_PATTERN}


def duration(least: float, most: float) -> Schema:
    """Seconds as a number, or a duration as in the configuration, such as `5m`."""
    return {"type": ["number", "string"], "minimum": least, "maximum": most, "pattern": DURATION_PATTERN}


INTERVAL = duration(1, 1_000_000_000)


def nullable(schema: Schema) -> Schema:
    """The schema, or null."""
    return {"anyOf": [schema, {"type": "null"}]}


def _or_null(schema: Schema) -> Schema:
    """The same as `nullable`. An error then says what is wrong, not that no alternative fits."""
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    enum = {"enum": [*schema["enum"], None]} if "enum" in schema else {}
    return {**schema, "type": [*kinds, "null"], **enum}


def one_of(*values: str) -> Schema:
    """One of these words."""
    return {"type": "string", "enum": [str(value) for value in values]}


def listed(schema: Schema) -> Schema:
    """A list."""
    return {"type": "array", "items": schema}


def document(name: str = "", /, **properties: Schema) -> Schema:
    """An object with all of these keys. It may get more keys in a later version.

    One with a `name` is a component of the description, and a type of that name in generated clients.
    """
    title = {"title": name} if name else {}
    return {**title, "type": "object", "properties": properties, "required": list(properties)}


def extended(name: str, schema: Schema, /, **properties: Schema) -> Schema:
    """The object of `schema` with more keys."""
    return document(name, **schema["properties"], **properties)


def given(required: tuple[str, ...] = (), /, **properties: Schema) -> Schema:
    """A body: `required` keys and optional ones, which may also be null. Other keys are refused: they are misspelt."""
    fields = {name: schema if name in required else _or_null(schema) for name, schema in properties.items()}
    return {"type": "object", "properties": fields, "required": list(required), "additionalProperties": False}


def page(schema: Schema) -> Schema:
    """A page of a list: `next` is the `after` of the next page, or null at the end."""
    return document(f"{schema['title']}Page", items=listed(schema), next=nullable(TEXT))


STATE = one_of(*State)
FAILURE = one_of(*Kind)
RESULT = one_of("failed", "moved", "unchanged")
MODE: Schema = {"type": "string", "pattern": "^[0-7]{6}$"}
"""A mode in a tree, as git prints it."""
PAST_ID: Schema = {"type": "integer", "minimum": 1}
HASH: Schema = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
"""A SHA-256 in the audit log's chain."""
CHANGE = document("RefChange", ref=TEXT, old=nullable(OID), new=nullable(OID))
LOST = listed(document("LostRecording", ref=TEXT, commit=OID))

SOURCE = one_of("config", "cli", "allowed")
REPO = document(
    "Repo",
    name=TEXT, url=TEXT, branch=nullable(TEXT), source=SOURCE, state=STATE, interval=SECONDS,
    enabled=SWITCH, private=SWITCH, readers=nullable(one_of("open", "token")),
)  # fmt: skip
ADDED = extended("AddedRepo", REPO, error=nullable(TEXT))
LACK = document("LackingSubmodule", path=TEXT, url=TEXT, commit=nullable(OID), reason=TEXT)
REPO_STATUS = document(
    "RepoStatus",
    name=TEXT, url=TEXT, branch=nullable(TEXT), source=SOURCE, state=STATE, tip=nullable(OID), lag=nullable(SECONDS),
    verified_at=nullable(TIME), last_error=nullable(TEXT), error=nullable(FAILURE), hint=nullable(TEXT),
    retry_at=nullable(TIME), failures=COUNT, refs=COUNT, size=COUNT, sessions=COUNT, damage=nullable(TEXT),
    inspected_at=nullable(TIME), verified_whole_at=nullable(TIME), lacks=listed(LACK), private=SWITCH,
    readers=REPO["properties"]["readers"],
)  # fmt: skip
REPO_WHOLE = document("WholeRepo", **{**REPO["properties"], **REPO_STATUS["properties"]})
REMOVED = document("RemovedRepo", name=TEXT, purged=SWITCH)
PUSHES = document("Pushes", accepted=COUNT, rejected=COUNT, off=nullable(TEXT), mend=nullable(TEXT))
CACHE = document("Cache", hits=COUNT, misses=COUNT, joined=COUNT, direct=COUNT, bytes=COUNT, budget=COUNT)
BACKUP_STATE = document(
    "BackupState",
    to=TEXT,
    at=nullable(TIME),
    age=nullable(SECONDS),
    bytes=nullable(COUNT),
    error=nullable(TEXT),
    verified_at=nullable(TIME),
    faults=nullable(COUNT),
)
_BY_KIND = {name: COUNT for name in ("mirrors", "answers", "workspaces", "disks", "lfs", "recordings")}
COLD = document(
    "ColdThing",
    kind=one_of("answers", "disks", "workspaces", "lfs", "mirrors"), repo=nullable(TEXT), what=TEXT, bytes=COUNT,
    used_at=nullable(TIME),
)  # fmt: skip
STORAGE = document(
    "Storage",
    used=COUNT,
    budget=COUNT,
    has_budget=SWITCH,
    over=COUNT,
    measured_at=nullable(TIME),
    by=document("StorageByKind", **_BY_KIND, database=COUNT),
    repos=listed(
        document("StorageOfRepo", name=TEXT, bytes=COUNT, by=document("StorageOfRepoByKind", **_BY_KIND))
    ),
    next=listed(COLD),
    removed=document("StorageRemoved", bytes=COUNT, count=COUNT),
)  # fmt: skip
STORAGE_WHOLE = extended("WholeStorage", STORAGE, removed_last=listed(extended("RemovedThing", COLD, at=TIME)))
WAITING = document("FleetWaiting", turns=COUNT, attachments=COUNT, registry=COUNT, ends=COUNT)
FLEET_STATE = document("FleetState", name=TEXT, node=TEXT, connected=SWITCH, trouble=nullable(TEXT), waiting=WAITING)
FLEET_NODE = document(
    "FleetNode",
    node=TEXT, version=TEXT, alive=SWITCH, seen=SECONDS, started_at=TIME, url=nullable(TEXT), repos=COUNT,
    sessions=COUNT, behind=COUNT, lag=nullable(SECONDS), waiting=COUNT, turns_behind=COUNT,
)  # fmt: skip
FLEET = extended(
    "Fleet", FLEET_STATE,
    servers=listed(TEXT), durability=one_of("async", "sync"), replicas=COUNT, nodes=listed(FLEET_NODE),
    warnings=listed(TEXT),
)  # fmt: skip
WARMED = document("Warmed", tip=nullable(OID), answers=COUNT, wanted=COUNT)
_LIVE: Mapping[str, Schema] = {
    "serving": SWITCH,
    "pid": COUNT,
    "git": nullable(TEXT),
    "http": nullable(TEXT),
    "admin": nullable(TEXT),
    "listeners": document("Listeners", git=listed(TEXT), http=listed(TEXT), admin=listed(TEXT)),
    "clients": COUNT,
    "audit_head": nullable(HASH),
    "pushes": PUSHES,
    "warnings": listed(TEXT),
    "cache": CACHE,
    "backup": nullable(BACKUP_STATE),
    "fleet": nullable(FLEET_STATE),
}
STATUS = document(
    "Status",
    **_LIVE, version=TEXT, repos=listed(REPO_STATUS), storage=STORAGE,
    warmed={"type": "object", "additionalProperties": WARMED},
)  # fmt: skip
CLONE = document(
    "Clone",
    phase=TEXT, percent=nullable(COUNT), objects=nullable(COUNT), total=nullable(COUNT), bytes=nullable(COUNT),
    speed=nullable(SECONDS), seconds=SECONDS,
)  # fmt: skip
PULSE = document(
    "Pulse",
    **_LIVE, connections={"type": "object", "additionalProperties": COUNT}, max_clients=COUNT, cloning=listed(TEXT),
    clones={"type": "object", "additionalProperties": CLONE},
    known_guests=document("KnownGuests", count=COUNT, problems={"type": "object", "additionalProperties": TEXT}),
)  # fmt: skip
REFRESHED = document(
    "Refresh",
    repo=TEXT, result=RESULT, duration=SECONDS, moved=listed(CHANGE), error=nullable(TEXT), kind=nullable(FAILURE),
)  # fmt: skip
PAST_REFRESH = extended("PastRefresh", REFRESHED, id=PAST_ID, started_at=TIME)
INSPECTED = document(
    "Inspection",
    repo=TEXT, whole=nullable(SWITCH), full=SWITCH, seconds=nullable(SECONDS), damage=nullable(TEXT),
    faults=listed(TEXT), lost=LOST, error=nullable(TEXT),
)  # fmt: skip
HEALED = document(
    "Healing",
    repo=TEXT, whole=SWITCH, done=listed(TEXT), lost=LOST, evidence=nullable(TEXT), damage=nullable(TEXT),
)  # fmt: skip
BACKED_UP = document(
    "Backup",
    to=TEXT, at=TIME, bytes=COUNT, written=COUNT, files=COUNT, removed=COUNT, repositories=COUNT, turns=COUNT,
    problems=listed(TEXT),
)  # fmt: skip
ACCEPTED_LOSS = document("AcceptedLoss", accepted=SWITCH, found=COUNT)
SESSION = document(
    "Session",
    repo=TEXT, session=TEXT, ref=TEXT, tip=OID, base=nullable(OID), turns=COUNT, commits=COUNT, files_changed=COUNT,
    insertions=COUNT, deletions=COUNT, first_at=TIME, last_at=TIME, client=TEXT, guest=nullable(TEXT),
    node=nullable(TEXT), kept=SWITCH, archived=SWITCH, bytes=COUNT,
)  # fmt: skip
ATTACHMENT = document("Attachment", name=TEXT, size=COUNT, sha256=HASH)
DROPPED = document("DroppedSession", repo=TEXT, session=TEXT)
_PROBLEM = document("Problem", type=TEXT, title=TEXT, status=COUNT, detail=TEXT, hint=TEXT)
PROBLEM: Schema = {**_PROBLEM, "properties": {**_PROBLEM["properties"], "exit_code": COUNT}}
"""Only a problem with which a command ends otherwise than its type says has an `exit_code`."""
