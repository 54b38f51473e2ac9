"""Ports of loopback that stay a test's own while nobody listens on them."""

from __future__ import annotations

import socket


def hold_port(host: str = "127.0.0.1", port: int = 0) -> socket.socket:
    """Return a socket that is bound to `port` of `host` (0: a free one) and does not listen.

    As long as it is open, the kernel gives the port to nobody who asks for any. A server can listen beside it if it
    sets SO_REUSEADDR, as all do that are tried here: the kernel refuses that only beside one that listens too. Raises
    OSError if the port is taken.
    """
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError:
        bound.close()
        raise
    return bound


def port_of(bound: socket.socket) -> int:
    """Return the port that a socket is bound to."""
    return int(bound.getsockname()[1])
