"""Known guests, made known and asked about through the API of a running `serve`."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from appliance.core.api.client import call
from appliance.core.layout import Layout
from tests.support.serve import Serve


def add_guest(serve: Serve, name: str, **order: Any) -> dict[str, Any]:
    """Make a guest known. Raises GitmirrorError."""
    return dict(call(Layout(serve.state), "POST", "/v1/guests", {"name": name, **order}, timeout=60.0))


def remove_guest(serve: Serve, name: str) -> dict[str, Any]:
    """Forget a guest. Raises GitmirrorError."""
    return dict(call(Layout(serve.state), "DELETE", f"/v1/guests/{name}", timeout=60.0))


def guests_of(serve: Serve) -> dict[str, dict[str, Any]]:
    """The known guests, by name."""
    found = call(Layout(serve.state), "GET", "/v1/guests?limit=1000", timeout=60.0)
    return {guest["name"]: dict(guest) for guest in found["items"]}


def ask_unix(path: Path | str, request: bytes, timeout: float = 60.0) -> bytes:
    """Send bytes to a unix socket and return all that comes back. The path may be longer than an address may be."""
    with connect_unix(path, timeout) as connection:
        connection.sendall(request)
        said = b""
        while data := connection.recv(65536):
            said += data
        return said


def connect_unix(path: Path | str, timeout: float = 60.0) -> socket.socket:
    """Connect to a unix socket. Raises OSError."""
    from appliance.core.process.control_socket import short_name

    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(timeout)
    try:
        with short_name(Path(path)) as short:
            connection.connect(short)
    except BaseException:
        connection.close()
        raise
    return connection


def get_unix(path: Path | str, target: str, host: str = "mirror", *headers: str) -> tuple[int, str]:
    """Ask for one page over a unix socket: its status and its body."""
    lines = [f"GET {target} HTTP/1.1", f"Host: {host}", "Connection: close", *headers]
    head, _, body = ask_unix(path, ("\r\n".join(lines) + "\r\n\r\n").encode()).partition(b"\r\n\r\n")
    return int(head.split()[1]), body.decode()
