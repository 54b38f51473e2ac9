"""Listening sockets."""

from __future__ import annotations

import fcntl
import socket
import struct
import termios

from appliance.core.errors import GitmirrorError
from appliance.core.units import Address

BACKLOG = 4096
"""The length of the backlog: a thousand guests may start in one second. The kernel caps it at net.core.somaxconn."""


def listen(address: Address, setting: str) -> socket.socket:
    """A non-blocking socket that listens on `address`. Raises GitmirrorError, which names the `setting` to change."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((address.host, address.port))
        listening.listen(BACKLOG)
    except (OSError, UnicodeError) as error:
        listening.close()
        raise GitmirrorError(
            f"cannot listen on {address}: {error.strerror if isinstance(error, OSError) else error}",
            hint=f"choose another address with --{setting} or [serve] {setting}, or stop the program that uses it",
        ) from None
    return listening


def url_of(listening: socket.socket, scheme: str) -> str:
    """`scheme://HOST:PORT` of a listening socket."""
    host, port = listening.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def unsent_bytes(descriptor: int) -> int:
    """The bytes in a socket's buffer that its peer has not acknowledged; 0 if it is closed."""
    try:
        [count] = struct.unpack("=i", fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4)))
    except (OSError, ValueError):
        return 0
    return int(count)
