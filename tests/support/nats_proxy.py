"""A proxy in front of a NATS server that stops at a chosen message, so that a test sees the moment before or after."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType


class NatsProxy:
    """Passes bytes on until `before` or `after` was seen in what a client sends. A context manager.

    With `before`, what has that text and all that follows is not passed on. With `after`, it is, and nothing that the
    server says from then on.
    """

    def __init__(self, host: str, port: int) -> None:
        self._server = (host, port)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.before: bytes | None = None
        self.after: bytes | None = None
        self.stalled = threading.Event()
        self._open: list[socket.socket] = []
        self.url = f"nats://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> NatsProxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A thread that waits in accept would go on at whatever gets the number of a socket that was only closed.
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self.cut()

    def cut(self) -> None:
        """Ends all connections, and passes everything on from now on."""
        self.before = self.after = None
        self.stalled.clear()
        for each in self._open:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self._open.clear()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                try:
                    server = socket.create_connection(self._server)
                except OSError:
                    client.close()
                    continue
                self._open += [client, server]
                threading.Thread(target=self._up, args=(client, server), daemon=True).start()
                threading.Thread(target=self._down, args=(server, client), daemon=True).start()

    def _up(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(2**16):
                if self.before is not None and self.before in data:
                    self.stalled.set()
                if self.before is not None and self.stalled.is_set():
                    continue
                if self.after is not None and self.after in data:
                    self.stalled.set()
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)

    def _down(self, server: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(2**16):
                if self.after is None or not self.stalled.is_set():
                    client.sendall(data)
            client.shutdown(socket.SHUT_WR)
