"""Asks a repository's LFS server for objects: the batch API and basic transfers (git-lfs, docs/api). Blocks."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any, NoReturn

from appliance.core.errors import Forbidden, GitmirrorError, NotFound, TryLater
from appliance.core.lfs.endpoint import Endpoint
from appliance.core.lfs.http_client import LfsAnswer, Line, NotAllowed, Reach, Unreachable, request
from appliance.core.lfs.pointers import Pointer
from appliance.core.text import escape
from appliance.core.units import format_size

MEDIA = "application/vnd.git-lfs+json"
MOST_OBJECTS = 100
"""Objects of one batch request, as many as git-lfs asks for."""
MOST_ANSWER = 8 * 2**20
"""Bytes of an answer of the batch API: ten times what a hundred long signed URLs take."""
BATCH_SECONDS = 60.0
LEAST_PACE = 16 * 2**10
"""Bytes a second below which a transfer is given up, as git does (`http.lowSpeedLimit`)."""
GRACE = 60.0
"""Seconds that a transfer may take besides, at whatever pace."""
MOST_WAIT = 300
"""Seconds of a Retry-After that are believed."""
PIECE = 256 * 2**10
_MARGIN = 5.0
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")
_UNSAFE = re.compile(r"[\x00-\x1f\x7f]|[^\x00-\xff]")
_OWN_HEADERS = frozenset({"host", "content-length", "transfer-encoding", "connection", "range", "accept-encoding"})


@dataclass(frozen=True)
class Action:
    """How an object is fetched. `until` is when this ends, on the monotonic clock. A local file has a `path`."""

    href: str
    headers: Mapping[str, str] = field(default_factory=dict)
    until: float = float("inf")
    path: Path | None = None

    @property
    def is_current(self) -> bool:
        """Whether it may still be used."""
        return time.monotonic() + _MARGIN < self.until


Sink = Callable[[bytes], None]
"""Gets the bytes of an object as they arrive. What it raises ends the transfer."""


def ask(
    endpoint: Endpoint, pointers: Sequence[Pointer], authorization: str | None, line: Line
) -> dict[Pointer, Action | GitmirrorError]:
    """Asks how to fetch objects, at most MOST_OBJECTS. Raises GitmirrorError if that fails for all of them.

    TryLater is raised if it may work later, Forbidden if a credential is missing or wrong.
    """
    if endpoint.directory is not None:
        return {pointer: _local(endpoint.directory, pointer) for pointer in pointers}
    document = {
        "operation": "download",
        "transfers": ["basic"],
        "objects": [{"oid": each.oid, "size": each.size} for each in pointers],
        "hash_algo": "sha256",
    }
    headers = {"Accept": MEDIA, "Content-Type": MEDIA, "Accept-Encoding": "identity"}
    if authorization is not None:
        headers["Authorization"] = authorization
    reach, body = Reach(endpoint.home, endpoint.is_secure), json.dumps(document).encode()
    url = f"{endpoint.url}/objects/batch"
    try:
        with request("POST", url, headers, reach, line, seconds=BATCH_SECONDS, body=body) as answer:
            if answer.status != HTTPStatus.OK:
                _raise_for(answer, "the upstream's LFS server")
            found = _objects(_read_whole(answer))
    except Unreachable as error:
        raise TryLater(f"the upstream's LFS server cannot be asked: {error.message}", retry_after=5) from None
    except NotAllowed as error:
        raise GitmirrorError(f"the upstream's LFS server is not asked: {error.message}") from None
    return {pointer: _action(found.get(pointer.oid), pointer) for pointer in pointers}


def fetch(endpoint: Endpoint, pointer: Pointer, action: Action, line: Line, begin: Sink, sink: Sink) -> None:
    """Fetches an object's bytes into `sink`, which has to check them. Raises GitmirrorError, and what `sink` raises.

    `begin` is called, with no bytes, once the server has answered and before the first byte.
    """
    if action.path is not None:
        _read_local(action.path, pointer, begin, sink)
        return
    seconds = GRACE + pointer.size / LEAST_PACE
    reach = Reach(endpoint.home, endpoint.is_secure)
    headers = {"Accept-Encoding": "identity", **action.headers}
    received = 0
    try:
        with request("GET", action.href, headers, reach, line, seconds=seconds) as answer:
            if answer.status != HTTPStatus.OK:
                _raise_for(answer, "the upstream's store of LFS objects")
            if answer.length is not None and answer.length != pointer.size:
                raise _wrong_size(pointer, answer.length)
            begin(b"")
            began = time.monotonic()
            while data := answer.read(PIECE):
                received += len(data)
                if received > pointer.size:
                    raise _wrong_size(pointer, received)
                if received < LEAST_PACE * (time.monotonic() - began - GRACE):
                    raise Unreachable("it is too slow")
                sink(data)
    except Unreachable as error:
        raise TryLater(f"an LFS object cannot be fetched from the upstream: {error.message}", retry_after=5) from None
    except NotAllowed as error:
        raise GitmirrorError(f"an LFS object is not fetched, because of its address: {error.message}") from None
    if received != pointer.size:
        raise _wrong_size(pointer, received)


def _wrong_size(pointer: Pointer, size: int) -> GitmirrorError:
    return GitmirrorError(f"the upstream has {format_size(size)} for an LFS object of {format_size(pointer.size)}")


def _read_whole(answer: LfsAnswer) -> bytes:
    data = bytearray()
    while piece := answer.read(PIECE):
        data += piece
        if len(data) > MOST_ANSWER:
            raise GitmirrorError("the answer of the upstream's LFS server is too large")
    return bytes(data)


def _objects(data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data)
        return {each["oid"]: each for each in document["objects"] if isinstance(each["oid"], str)}
    except (ValueError, KeyError, TypeError, RecursionError):
        raise GitmirrorError("the upstream's LFS server sent an invalid response to the batch request") from None


def _action(found: Any, pointer: Pointer) -> Action | GitmirrorError:
    """What the answer says of one object."""
    if found is None:
        return NotFound("the upstream's LFS server left this object out of its response")
    error = found.get("error")
    if isinstance(error, dict):
        return _error_of(error)
    if found.get("size", pointer.size) != pointer.size:
        return GitmirrorError("the upstream's LFS server has this object with another size")
    actions = found.get("actions") or found.get("_links")
    download = actions.get("download") if isinstance(actions, dict) else None
    if not isinstance(download, dict) or not isinstance(download.get("href"), str):
        return NotFound("the upstream's LFS server has no such object")
    given = download.get("header") or {}
    if not isinstance(given, dict) or not all(_is_header(name, value) for name, value in given.items()):
        return GitmirrorError("the upstream's LFS server sent a malformed header")
    headers = {name: value for name, value in given.items() if name.lower() not in _OWN_HEADERS}
    return Action(download["href"], headers, _until(download))


def _error_of(error: Mapping[str, Any]) -> GitmirrorError:
    code, words = error.get("code"), escape(str(error.get("message", "")))[:200]
    if code in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
        return NotFound(f"the upstream's LFS server has no such object: {words}")
    return GitmirrorError(f"the upstream's LFS server refuses the object: {words} ({escape(str(code))[:20]})")


def _is_header(name: Any, value: Any) -> bool:
    return isinstance(value, str) and bool(_HEADER.fullmatch(name)) and not _UNSAFE.search(value)


def _until(download: Mapping[str, Any]) -> float:
    """When an action ends, on the monotonic clock. `expires_in` (seconds) counts more than `expires_at` (RFC 3339)."""
    seconds = download.get("expires_in")
    if isinstance(seconds, int | float) and seconds > 0:
        return time.monotonic() + seconds
    at = download.get("expires_at")
    if isinstance(at, str):
        try:
            moment = datetime.fromisoformat(at)
        except ValueError:
            return float("inf")
        # The zero time of Go, which GitLab and others send, means that it does not expire.
        if moment.year > 1 and moment.tzinfo is not None:
            return time.monotonic() + moment.timestamp() - time.time()
    return float("inf")


def _raise_for(answer: LfsAnswer, what: str) -> NoReturn:
    status = answer.status
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        raise Forbidden(f"{what} demands another credential ({status})")
    if status in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
        raise NotFound(f"{what} is not there, or has no such object ({status})")
    if status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        raise TryLater(f"{what} answers {status}", retry_after=_retry_after(answer))
    raise GitmirrorError(f"{what} answers {status}")


def _retry_after(answer: LfsAnswer) -> int:
    given = answer.headers.get("retry-after", "")
    return max(1, min(int(given), MOST_WAIT)) if given.isascii() and given.isdigit() and len(given) < 9 else 5


def _local(upstream: Path, pointer: Pointer) -> Action | GitmirrorError:
    for below in (upstream / "lfs", upstream / ".git" / "lfs"):
        path = below / "objects" / pointer.oid[:2] / pointer.oid[2:4] / pointer.oid
        if path.is_file():
            return Action("", path=path)
    return NotFound("the local upstream has no such object")


def _read_local(path: Path, pointer: Pointer, begin: Sink, sink: Sink) -> None:
    try:
        with path.open("rb") as file:
            begin(b"")
            received = 0
            while data := _piece(file, path):
                received += len(data)
                if received > pointer.size:
                    break
                sink(data)
    except FileNotFoundError:
        raise NotFound("the local upstream has no such object any more") from None
    if received != pointer.size:
        raise _wrong_size(pointer, received)


def _piece(file: Any, path: Path) -> bytes:
    try:
        return bytes(file.read(PIECE))
    except OSError as error:
        raise GitmirrorError(f"{path} cannot be read: {error.strerror}") from None
