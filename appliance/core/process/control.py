"""Calls the `serve` that owns a state directory, over its unix socket, with one JSON document per line.

A request is `{"command": NAME, "arguments": {...}}`. The response is any number of `{"progress": TEXT}` and then
one `{"result": ...}` or `{"error": {"message", "hint", "exit_code"}}`. The response to the command `watch` is one
`{"watching": true}` and then one event per line (see observability/event_stream.py), until either side hangs up.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from appliance.core.errors import GitmirrorError, NotServing
from appliance.core.layout import Layout
from appliance.core.process.owner import SERVE, OwnerInfo, find_owner

WATCH = "watch"

Tell = Callable[[str], None]


@contextlib.contextmanager
def short_name(path: Path) -> Iterator[str]:
    """Yields a short name for `path`, because a unix socket's is limited to 107 bytes and `path` may be longer."""
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def is_serving(layout: Layout) -> bool:
    """Whether a `serve` owns the state directory."""
    owner = find_owner(layout)
    return owner is not None and owner.role == SERVE


class Watch:
    """The events of a running `serve` from now on. Iteration ends when either side hangs up.

    The constructor raises NotServing. `close` may be called from another thread and then ends the iteration.
    """

    def __init__(self, layout: Layout) -> None:
        self._connection, self._owner = _connect(layout, QUICK)
        try:
            self._connection.sendall(json.dumps({"command": WATCH}).encode() + b"\n")
            self._lines = self._connection.makefile("rb")
            answered = json.loads(self._lines.readline() or b"{}")
        except (OSError, ValueError) as error:
            self._connection.close()
            raise _unanswered(self._owner, error) from None
        if not answered.get("watching"):
            self._connection.close()
            raise NotServing("the running serve has another version and sends no events", hint="restart serve")
        self._connection.settimeout(None)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yields each event: `{event, at, repo, …}`. Half a line, from a serve that was killed, also ends it."""
        with contextlib.suppress(OSError, ValueError):
            for line in self._lines:
                yield json.loads(line)

    def close(self) -> None:
        """Hangs up."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()


QUICK = 30.0
"""Seconds in which a healthy `serve` responds to a request that it only has to look up."""


def call(
    layout: Layout, command: str, *, on_progress: Tell | None = None, timeout: float | None = None, **arguments: Any
) -> Any:
    """Sends a command to `serve` and returns the result. Raises NotServing, or the GitmirrorError of the response.

    `timeout` is in seconds and applies to each read and write; None waits without limit.
    """
    connection, owner = _connect(layout, timeout)
    with connection:
        try:
            connection.sendall(json.dumps({"command": command, "arguments": arguments}).encode() + b"\n")
            with connection.makefile("rb") as answers:
                for line in answers:
                    answer = json.loads(line)
                    if "progress" in answer:
                        if on_progress is not None:
                            on_progress(answer["progress"])
                    elif "error" in answer:
                        raise GitmirrorError(**answer["error"])
                    else:
                        return answer["result"]
        except OSError as error:
            raise _unanswered(owner, error) from None
        except ValueError:
            # Half a line: serve was killed while it wrote the response.
            pass
    raise NotServing(f"serve (process {owner.pid}) ended before it answered", hint="see its log")


def not_serving(layout: Layout) -> NotServing:
    """Returns the error for a command that needs a running `serve`."""
    return NotServing(f"serve is not running on {layout.state}", hint="start it, or name its directory with --state")


def _connect(layout: Layout, timeout: float | None) -> tuple[socket.socket, OwnerInfo]:
    owner = find_owner(layout)
    if owner is None or owner.role != SERVE:
        raise not_serving(layout)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(timeout)
    try:
        with short_name(Path(owner.control)) as name:
            connection.connect(name)
    except OSError as error:
        connection.close()
        raise _unanswered(owner, error) from None
    return connection, owner


def _unanswered(owner: OwnerInfo, error: Exception) -> NotServing:
    why = getattr(error, "strerror", None) or error
    return NotServing(
        f"serve (process {owner.pid}) does not answer on {owner.control}: {why}",
        hint="it may be starting or stopping; its control socket is for its user and group only",
    )
