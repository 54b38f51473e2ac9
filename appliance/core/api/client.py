"""Calls the API of the `serve` that owns a state directory, over its unix socket.

Without Starlette, because every command that asks `serve` imports this.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import string
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from appliance import __version__
from appliance.core.api.problem import MEDIA_TYPE, NO_ROUTE, STOPPING, VERSION_HEADER, error_of
from appliance.core.errors import GitmirrorError, NotServing
from appliance.core.layout import Layout
from appliance.core.models import Tell
from appliance.core.names import is_repo_name
from appliance.core.process.control_socket import connect, unanswered
from appliance.core.process.owner import OwnerInfo, find_owner
from appliance.core.store.registry import UnknownRepo

QUICK = 30.0
"""Seconds in which a healthy `serve` responds to a request that it only has to look up."""
ENDING = 0.5
"""Seconds that a `serve` which hung up may take to end."""
JSON = "application/json"
NDJSON = "application/x-ndjson"


def call(
    layout: Layout,
    method: str,
    path: str,
    body: Mapping[str, Any] | None = None,
    *,
    query: Mapping[str, Any] | None = None,
    on_progress: Tell | None = None,
    timeout: float | None = None,
) -> Any:
    """Sends a request and returns the JSON document, or the text, of its response.

    `path` begins with `/v1`. `timeout` is in seconds and applies to each read and write; None waits without limit.
    Raises NotServing, or the error that the response describes.
    """
    headers = {"Accept": NDJSON} if on_progress is not None else {}
    data = None if body is None else json.dumps(body).encode()
    with _sent(layout, method, _target(path, query), data, headers, timeout) as (response, owner):
        media_type = response.headers.get_content_type()
        if media_type == NDJSON and on_progress is not None:
            return _result(response, owner, on_progress)
        content = response.read()
        try:
            document = json.loads(content) if media_type in (JSON, MEDIA_TYPE) else content.decode()
        except ValueError:
            document = None
        if media_type == MEDIA_TYPE and isinstance(document, dict):
            raise _error(document, response, f"{method} {path}")
        if response.status >= 400 or (document is None and content.strip() != b"null"):
            words = f"{method} {path} was answered with status {response.status} and no document"
            raise GitmirrorError(f"serve (process {owner.pid}) failed: {words}", hint="see its log")
        return document


@dataclass(frozen=True)
class Raw:
    """A response as it came. Iterating over `pieces` to the end raises NotServing if it was cut off."""

    status: int
    media_type: str
    pieces: Iterator[bytes]


def send(layout: Layout, method: str, path: str, body: bytes | None, accept: str) -> Raw:
    """Sends a request as it is, whatever its response says. Raises NotServing.

    What a URL cannot have, such as a space, is escaped in `path`.
    """
    target = quote(path, safe=string.punctuation, errors="surrogateescape")
    sent = contextlib.ExitStack()
    response, _ = sent.enter_context(_sent(layout, method, target, body, {"Accept": accept}, None))
    left = response.length

    def pieces() -> Iterator[bytes]:
        nonlocal left
        with sent:
            while piece := response.read1(65536):
                left = None if left is None else left - len(piece)
                yield piece
            if left:
                # `read1` does not count.
                raise http.client.IncompleteRead(b"", left)

    return Raw(response.status, response.headers.get_content_type(), pieces())


def pages(layout: Layout, path: str, query: Mapping[str, Any] | None = None) -> Iterator[Any]:
    """Every item of a list, page by page. Raises as `call` does."""
    after = None
    while True:
        page = call(layout, "GET", path, query={"limit": 1000, **(query or {}), "after": after}, timeout=QUICK)
        yield from page["items"]
        after = page["next"]
        if after is None:
            return


class Watch:
    """The events of a running `serve` from now on. Iteration ends when either side hangs up.

    The constructor raises NotServing. `close` may be called from another thread and then ends the iteration.
    """

    def __init__(self, layout: Layout) -> None:
        self._connection, owner = connect(layout, QUICK)
        try:
            exchange = _exchange(self._connection)
            exchange.request("GET", "/v1/events", headers={"User-Agent": f"gitmirror/{__version__}"})
            self._response = exchange.getresponse()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise _no_answer(layout, owner, error) from None
        if self._response.status != 200:
            self._connection.close()
            raise NotServing("the running serve has another version and sends no events", hint="restart serve")
        self._connection.settimeout(None)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yields each event: `{event, at, repo, …}`. Half a line, from a serve that was killed, also ends it."""
        with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
            while line := self._response.readline():
                if line.startswith(b"data:"):
                    yield json.loads(line.removeprefix(b"data:"))

    def close(self) -> None:
        """Hangs up."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()


def repo_path(name: str, *below: str) -> str:
    """The path of a repository, or of something `below` it. Raises UnknownRepo for what no repository can be called."""
    if not is_repo_name(name):
        # Its slashes would make it the path of another route.
        raise UnknownRepo(name)
    return "/".join(["/v1/repos", *(quote(part, errors="surrogateescape") for part in (name, *below))])


def _target(path: str, query: Mapping[str, Any] | None) -> str:
    fields = {
        name: str(value).lower() if isinstance(value, bool) else value
        for name, value in (query or {}).items()
        if value is not None
    }
    return f"{path}?{urlencode(fields, errors='surrogateescape')}" if fields else path


def _exchange(connection: socket.socket) -> http.client.HTTPConnection:
    exchange = http.client.HTTPConnection("localhost")
    exchange.sock = connection
    return exchange


@contextlib.contextmanager
def _sent(
    layout: Layout, method: str, target: str, data: bytes | None, headers: Mapping[str, str], timeout: float | None
) -> Iterator[tuple[http.client.HTTPResponse, OwnerInfo]]:
    connection, owner = connect(layout, timeout)
    common = {"User-Agent": f"gitmirror/{__version__}", **headers}
    if data is not None:
        common["Content-Type"] = "application/json"
    with connection:
        try:
            exchange = _exchange(connection)
            # `serve` may refuse a body before it has read all of it.
            with contextlib.suppress(BrokenPipeError):
                exchange.request(method, target, data, common)
            with exchange.getresponse() as response:
                yield response, owner
        except (OSError, http.client.HTTPException) as error:
            raise _no_answer(layout, owner, error) from None


def _no_answer(layout: Layout, owner: OwnerInfo, error: Exception) -> NotServing:
    """The error for a `serve` that did not answer in HTTP, or not to the end."""
    is_cut = isinstance(error, (ConnectionResetError, BrokenPipeError))
    is_no_http = isinstance(error, http.client.BadStatusLine) and not str(error).startswith("HTTP/")
    if (is_no_http and not is_cut) or ((is_no_http or is_cut) and _stays(layout, owner)):
        # Before there was an API, `serve` answered with a line of JSON, or hung up on what it did not understand.
        return NotServing(f"serve (process {owner.pid}) is older than this file", hint="restart serve")
    if is_cut or isinstance(error, http.client.HTTPException):
        return NotServing(f"serve (process {owner.pid}) ended before it answered", hint="see its log")
    return unanswered(owner, error)


def _stays(layout: Layout, owner: OwnerInfo) -> bool:
    """Whether the owner still runs. One that is killed loses its connections a moment before its ownership."""
    until = time.monotonic() + ENDING
    while (stays := find_owner(layout) == owner) and time.monotonic() < until:
        time.sleep(0.02)
    return stays


def _result(response: http.client.HTTPResponse, owner: OwnerInfo, on_progress: Tell) -> Any:
    try:
        while line := response.readline():
            answer = json.loads(line)
            if "progress" in answer:
                on_progress(answer["progress"])
            elif "error" in answer:
                raise _error(answer["error"], response, "")
            else:
                # Otherwise `serve` would log that we left early.
                response.read()
                return answer["result"]
    except ValueError:
        # Half a line: serve was killed while it wrote the response.
        pass
    raise _ended(owner)


def _ended(owner: OwnerInfo) -> NotServing:
    return NotServing(f"serve (process {owner.pid}) ended before it answered", hint="see its log")


def _error(document: dict[str, Any], response: http.client.HTTPResponse, request: str) -> GitmirrorError:
    error = error_of(document)
    if document.get("type") == STOPPING.type:
        return NotServing(error.message, hint=error.hint)
    if document.get("type") == NO_ROUTE.type:
        running = response.headers.get(VERSION_HEADER, "unknown")
        message = f"the running serve (version {running}) does not know {request}, and this file is {__version__}"
        return NotServing(message, hint="restart serve with the file that is installed")
    return error
