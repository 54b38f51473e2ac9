"""The unix socket on which `serve` answers operators. What is said on it is HTTP (see the package `api`)."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from appliance.core.errors import NotServing
from appliance.core.layout import Layout
from appliance.core.process.groups import how_to_get_in
from appliance.core.process.owner import SERVE, OwnerInfo, find_owner


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


def not_serving(layout: Layout) -> NotServing:
    """Returns the error for a command that needs a running `serve`."""
    return NotServing(f"serve is not running on {layout.state}", hint="start it, or name its directory with --state")


def connect(layout: Layout, timeout: float | None) -> tuple[socket.socket, OwnerInfo]:
    """Connects to the running `serve`; `timeout` is in seconds and applies to each read and write.

    Raises NotServing.
    """
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
        raise unanswered(owner, error) from None
    return connection, owner


def unanswered(owner: OwnerInfo, error: Exception) -> NotServing:
    """Returns the error for a `serve` that cannot be reached or does not answer."""
    why = getattr(error, "strerror", None) or error
    if isinstance(error, PermissionError):
        control = Path(owner.control)
        hint = f"{how_to_get_in(control if control.exists() else control.parent)}: its control socket is for operators"
    else:
        hint = "it may be starting or stopping; its log says more"
    return NotServing(f"serve (process {owner.pid}) does not answer on {owner.control}: {why}", hint=hint)
