"""The roads of guests to the mirror. Each guest has ports of its own, and comes from an address of its own.

All guests of the demo are on one machine. Without this the mirror would see one address, and nobody would be slow.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import dataclass, field
from urllib.parse import urlsplit

PIECE = 16 * 1024
SMALL = 8 * 1024
"""Bytes that a slow guest's side may keep of a download."""
SEGMENT = 1000
"""Bytes of a slow guest's TCP segments. With the 64 KiB of the loopback, the mirror's own kernel would take 3.5 MB of a
download at once, and the mirror would be done; with this it takes 150 KB."""


@dataclass
class GuestRoad:
    """Relays a guest's connections to the mirror from `address`, at `pace` bytes a second at most."""

    address: str
    pace: int | None = None
    git: str = ""
    http: str = ""
    _servers: list[asyncio.Server] = field(default_factory=list)

    async def open(self, git: str, http: str) -> None:
        """Listens on two free ports, for the mirror's URLs `git` and `http`. Raises OSError."""
        self.git = await self._listen(git)
        self.http = await self._listen(http)

    def close(self) -> None:
        """Stops listening."""
        for server in self._servers:
            server.close()

    async def _listen(self, url: str) -> str:
        parts = urlsplit(url)
        assert parts.hostname and parts.port
        goal = (parts.hostname, parts.port)

        async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._carry(goal, reader, writer)

        server = await asyncio.start_server(carry, "127.0.0.1", 0)
        self._servers.append(server)
        return f"{parts.scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def _carry(self, goal: tuple[str, int], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far = None
        try:
            # Either side may hang up. At the end, this task is cancelled.
            with contextlib.suppress(OSError, asyncio.CancelledError):
                near = socket.socket()
                near.setblocking(False)
                if self.pace is not None:
                    near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
                    near.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT)
                near.bind((self.address, 0))
                await asyncio.get_running_loop().sock_connect(near, goal)
                answers, far = await asyncio.open_connection(sock=near, limit=PIECE)
                await asyncio.gather(_copy(reader, far, None), _copy(answers, writer, self.pace))
        finally:
            writer.close()
            if far is not None:
                far.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pace: int | None) -> None:
    """Copies until the end, and passes the end on."""
    while piece := await reader.read(PIECE if pace is None else SMALL):
        writer.write(piece)
        await writer.drain()
        if pace is not None:
            await asyncio.sleep(len(piece) / pace)
    with contextlib.suppress(OSError):
        writer.write_eof()
