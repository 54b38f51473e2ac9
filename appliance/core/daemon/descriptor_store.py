"""Keeps sockets open while `serve` restarts: the service manager holds them (FDSTORE=1 of sd_notify(3))."""

from __future__ import annotations

import array
import logging
import socket
from collections.abc import Mapping

log = logging.getLogger(__name__)


class DescriptorStore:
    """Hands sockets to the service manager at `address` (a path, or an abstract socket's `@name`).

    With the next start it passes them back like those of socket units, under the names that they were kept under.
    """

    def __init__(self, address: str) -> None:
        self._target = "\0" + address[1:] if address.startswith("@") else address
        self._socket: socket.socket | None = None
        self._dropped: list[str] = []

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> DescriptorStore | None:
        """The store of the manager that `environ` names, or None if it keeps nothing.

        systemd sets FDSTORE to the number of descriptors that it keeps since version 254; our unit sets it for older
        ones.
        """
        address, most = environ.get("NOTIFY_SOCKET", ""), environ.get("FDSTORE", "")
        if not address.startswith(("/", "@")) or not most.isascii() or not most.isdigit() or int(most) == 0:
            return None
        return cls(address)

    def keep(self, name: str, listening: socket.socket) -> bool:
        """Hands over a socket; False if the manager's queue is full, and then try again later. Never raises."""
        self._drop_again()
        return self._send(f"FDSTORE=1\nFDNAME={name}", [listening.fileno()])

    def drop(self, name: str) -> None:
        """Asks for a socket to be closed. Never raises."""
        self._dropped.append(name)
        self._drop_again()

    def _drop_again(self) -> None:
        while self._dropped and self._send(f"FDSTOREREMOVE=1\nFDNAME={self._dropped[0]}", []):
            del self._dropped[0]

    def _send(self, text: str, descriptors: list[int]) -> bool:
        passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
                self._socket.setblocking(False)
            self._socket.sendmsg([text.encode()], passed, 0, self._target)
        except BlockingIOError:
            return False
        except OSError as error:
            log.debug("the service manager at %s cannot be reached: %s", self._target, error)
            return False
        return True
