"""The unix sockets of known guests: `PATH_9418` for git:// and `PATH_9419` for HTTP."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path

from appliance.core.errors import GitmirrorError
from appliance.core.models import Guest
from appliance.core.process.control_socket import short_name
from appliance.core.serving.net.acceptor import Acceptor, Road
from appliance.core.serving.net.sockets import BACKLOG

PORTS = {"git": 9418, "http": 9419}
"""Firecracker delivers what its guest sends to port P of CID 2 at the socket `PATH_P`."""


class GuestSockets:
    """Opens and closes the sockets of guests, whose connections `acceptors` (by port name) accept."""

    def __init__(self, acceptors: Mapping[str, Acceptor]) -> None:
        self._acceptors = acceptors
        self._open: dict[int, dict[str, tuple[str, socket.socket]]] = {}

    def open(self, guest: Guest) -> None:
        """Listens on the sockets of a guest, if it has any. Raises GitmirrorError, and then none is left."""
        if guest.unix is None or guest.id in self._open:
            return
        opened = self._open[guest.id] = {}
        for name, port in PORTS.items():
            path = f"{guest.unix}_{port}"
            listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            try:
                with short_name(Path(path)) as short:
                    listening.bind(short)
                listening.listen(BACKLOG)
            except OSError as error:
                listening.close()
                self.close(guest.id)
                raise GitmirrorError(f"cannot listen on {path}: {error.strerror}") from None
            self._acceptors[name].add(listening, Road(guest.name, guest.id))
            opened[path] = (name, listening)

    def close(self, guest_id: int) -> None:
        """Closes the sockets of a guest and removes their files."""
        for path, (name, listening) in self._open.pop(guest_id, {}).items():
            self._acceptors[name].remove(listening)
            Path(path).unlink(missing_ok=True)

    def close_all(self) -> None:
        """Closes all sockets, when `serve` stops."""
        for guest_id in list(self._open):
            self.close(guest_id)
