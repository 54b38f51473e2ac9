"""The unix socket on which operators reach the API of `serve`: who may open it needs no token."""

from __future__ import annotations

import json
import logging
import os
import socket
from pathlib import Path

from appliance.core.api.problem import http_problem
from appliance.core.errors import GitmirrorError
from appliance.core.process.control_socket import short_name
from appliance.core.serving.net.acceptor import A_YEAR, Acceptor, Limits
from appliance.core.serving.net.asgi import Application, AsgiHandler
from appliance.core.serving.net.http import HttpError, HttpPort
from appliance.core.serving.net.seats import Seat, Seats
from appliance.core.serving.net.streams import CHUNK, IdleTimeout, SocketStream

log = logging.getLogger(__name__)

MOST_CONNECTIONS = 2048
"""Connections at once. Each holds a descriptor and some 30 kB."""
LIMITS = Limits(MOST_CONNECTIONS, A_YEAR, request_timeout=3600.0, idle_timeout=A_YEAR, total_timeout=A_YEAR)
"""Operators are trusted to end what they begin: a first clone may take hours, and a live view is open for weeks."""


def api_handler(application: Application, *, is_operator: bool) -> AsgiHandler:
    """Answers HTTP with the API. Errors that it does not see, such as a malformed head, become problems too."""

    def explain(error: HttpError, target: bytes) -> tuple[str, str]:
        return http_problem(error.status, error.text)

    return AsgiHandler(application, explain, is_operator=is_operator)


class ApiSocket:
    """Answers HTTP with `api` on the socket at `path`, mode 0660."""

    def __init__(self, path: Path, api: AsgiHandler) -> None:
        self._path = path
        self._http = HttpPort(api.handle, LIMITS, api.explain)
        self._acceptor = Acceptor("control", self._serve, Seats(MOST_CONNECTIONS))
        self._is_open = False

    async def start(self) -> None:
        """Binds the socket and replaces one that a killed `serve` left. Raises GitmirrorError."""
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            self._path.unlink(missing_ok=True)
            with short_name(self._path) as name:
                previous = os.umask(0o117)
                try:
                    listening.bind(name)
                finally:
                    os.umask(previous)
            listening.listen(128)
        except OSError as error:
            listening.close()
            raise GitmirrorError(f"the control socket {self._path} cannot be created: {error}") from error
        self._acceptor.start([listening])
        self._is_open = True

    @property
    def is_open(self) -> bool:
        """Whether commands can connect."""
        return self._is_open

    async def stop(self) -> None:
        """Closes the socket and cancels the requests that are being answered."""
        await self._acceptor.stop(0)
        self._path.unlink(missing_ok=True)

    async def _serve(self, seat: Seat) -> None:
        stream = SocketStream(seat.socket, LIMITS.idle_timeout)
        try:
            arrived = await stream.receive(CHUNK)
            if arrived.startswith(b"{"):
                await stream.send(_TO_AN_OLDER_FILE)
                return
        except (OSError, IdleTimeout):
            return
        if arrived:
            await self._http.serve(seat, arrived)


_TO_AN_OLDER_FILE = (
    json.dumps(
        {
            "error": {
                "message": "this gitmirror.pyz is older than the running serve",
                "hint": "use the file that serve runs from",
                "exit_code": 4,
            }
        }
    ).encode()
    + b"\n"
)
"""Before there was an API, commands sent a line of JSON and expected one."""
