"""Messages of a fleet as bytes: JSON objects, each checked before anything is done with it. Pure.

Every message has `v`, the version of its form, and `kind`. A node that does not know either skips the message, so that
nodes of two versions can be one fleet while they are upgraded. Keys that are not known here are ignored.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from typing import Any, TypeVar

from appliance.core.fleet.messages import (
    Attached,
    LeaseEntry,
    LogHead,
    LookRequest,
    News,
    NodeEntry,
    NodeForgotten,
    NotOurs,
    RepoEntry,
    SessionEnd,
    SessionKept,
    TurnAttached,
    TurnRow,
)

VERSION = 1
LARGEST = 900 * 2**10
"""Bytes of a message. The server refuses more than 1 MiB; notes of a turn take 64 times 4 KiB, before escaping."""
MOST_TEXT = 4096
"""Characters of a text such as a subject, an address or a reason; whoever writes a longer one cuts it."""
MOST_ITEMS = 10_000

Message = (
    TurnRow
    | TurnAttached
    | SessionEnd
    | SessionKept
    | RepoEntry
    | NodeEntry
    | LeaseEntry
    | News
    | LookRequest
    | LogHead
    | NodeForgotten
)
_Kind = TypeVar("_Kind", bound=Message)


def write(message: Message) -> bytes:
    """The bytes of a message."""
    document = {"v": VERSION, "kind": message.KIND, **asdict(message)}
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")


def read(data: bytes | None, *kinds: type[_Kind]) -> _Kind:
    """Parses a message that must be one of `kinds`. Raises NotOurs."""
    if data is None or len(data) > LARGEST:
        raise NotOurs(f"it has {len(data or b'')} bytes")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise NotOurs("it is no JSON") from None
    if not isinstance(document, dict) or document.get("v") != VERSION:
        raise NotOurs("it is of another version")
    for kind in kinds:
        if document.get("kind") == kind.KIND:
            message: _Kind = _build(kind, document)
            message.check()
            return message
    raise NotOurs(f"its kind is not {' or '.join(kind.KIND for kind in kinds)}")


_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "str | None": (str, type(None)),
    "int": (int,),
    "float": (int, float),
    "float | None": (int, float, type(None)),
    "bool": (bool,),
}


def _build(kind: type[Any], document: Mapping[str, Any]) -> Any:
    values: dict[str, Any] = {}
    for each in fields(kind):
        if each.name in document:
            values[each.name] = _value(each.name, str(each.type), document[each.name])
        elif each.default is MISSING and each.default_factory is MISSING:
            raise NotOurs(f"{each.name} is missing")
    return kind(**values)


def _value(name: str, wanted: str, value: Any) -> Any:
    if wanted in _TYPES:
        return _plain(name, wanted, value)
    if wanted == "Attached":
        return _attached(value)
    if wanted == "Mapping[str, str]":
        if not isinstance(value, dict) or len(value) > 64 or not all(isinstance(each, str) for each in value.values()):
            raise NotOurs(f"{name} does not map texts to texts")
        return value
    if not isinstance(value, list) or len(value) > MOST_ITEMS:
        raise NotOurs(f"{name} is no list, or too long")
    if wanted == "tuple[str, ...]":
        return tuple(_plain(name, "str", each) for each in value)
    return tuple(_attached(each) for each in value)


def _plain(name: str, wanted: str, value: Any) -> Any:
    types = _TYPES[wanted]
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise NotOurs(f"{name} is not of the type {wanted}")
    if isinstance(value, str) and len(value) > MOST_TEXT:
        raise NotOurs(f"{name} is too long")
    if isinstance(value, float) and not math.isfinite(value):
        raise NotOurs(f"{name} is no number")
    return value


def _attached(value: Any) -> Attached:
    if not isinstance(value, dict):
        raise NotOurs("an attachment is no object")
    attached: Attached = _build(Attached, value)
    return attached
