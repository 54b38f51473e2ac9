"""The faults of an upstream, its request log, and its open connections."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from tests.support.gitutil import kill_group


class Gone(Exception):
    """The client disconnected, the upstream closes, or a fault cuts the connection."""


@dataclass
class Switches:
    """The faults of an upstream. Set them at any time: the next request and hung requests see the change."""

    hang: bool = False
    """Accept the request and respond only once this is False again."""
    fail: bool = False
    """Answer 500."""
    status: int = 0
    """Answer with this status, when not 0."""
    retry_after: int | None = None
    """Seconds in the `Retry-After` header of a `status` answer."""
    page: bytes = b""
    """The body of a `status` answer, instead of a plain sentence."""
    not_found: bool = False
    """Answer 404, as GitHub also does for a private repository."""
    require_password: bool = False
    """Answer 401 to requests without `user` and `password`."""
    user: str = "reader"
    password: str = "correct horse"
    slow: int | None = None
    """Bytes of body per second."""
    cut_after: int | None = None
    """Close the connection after this many bytes of body; a shorter answer is complete."""
    hang_after: int | None = None
    """Send this many bytes of body, then nothing until this is None."""

    def reset(self) -> None:
        """Turn every fault off."""
        for each in fields(self):
            setattr(self, each.name, each.default)


@dataclass(frozen=True)
class Request:
    """One request that reached an upstream. It is logged when it is read, so hung requests are logged too."""

    method: str
    path: str
    """The path as received, with the query."""
    repo: str
    """`acme/widgets`, or "" for a path that is not a repository's."""
    service: str
    """`git-upload-pack`, `git-receive-pack`, or ""."""
    protocol: str
    """The `Git-Protocol` header: `version=2`, or ""."""
    user: str
    """The user of the basic authorization, or ""."""


class Traffic:
    """The state that the server's threads share: faults, request log, open connections, running children."""

    def __init__(self, root: Path, push: bool) -> None:
        self.root = root
        self.push = push
        self.everywhere = Switches()
        self.closing = threading.Event()
        self._own: dict[str, Switches] = {}
        self._requests: list[Request] = []
        self._hanging = 0
        self._lock = threading.Lock()
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._children: set[subprocess.Popen[bytes]] = set()

    def switches(self, name: str) -> Switches:
        """Return the faults of one repository only."""
        with self._lock:
            return self._own.setdefault(name, Switches())

    def faults(self, name: str) -> Switches:
        """Return the faults for a request to `name`: its own, and otherwise those of all repositories."""
        own, common = self.switches(name), self.everywhere
        merged = Switches()
        for each in fields(Switches):
            value = getattr(own, each.name)
            setattr(merged, each.name, value if value != each.default else getattr(common, each.name))
        return merged

    def reset(self) -> None:
        """Turn every fault off."""
        with self._lock:
            for each in (self.everywhere, *self._own.values()):
                each.reset()

    def note(self, request: Request) -> None:
        """Log one request."""
        with self._lock:
            self._requests.append(request)

    def requests(self) -> list[Request]:
        """Return the requests so far, oldest first."""
        with self._lock:
            return list(self._requests)

    def forget(self) -> None:
        """Empty the request log."""
        with self._lock:
            self._requests.clear()

    def hanging(self) -> int:
        """Return how many requests hang right now."""
        with self._lock:
            return self._hanging

    def hang(self, connection: socket.socket, still: Callable[[], object]) -> None:
        """Wait while `still()` is true. Raises Gone when the client disconnects or the upstream closes."""
        with self._lock:
            self._hanging += 1
        try:
            while still():
                if self.closing.wait(0.02) or _has_left(connection):
                    raise Gone
        finally:
            with self._lock:
                self._hanging -= 1

    def connect(self, connection: socket.socket, thread: threading.Thread) -> None:
        """Register a connection and the thread that will serve it, before that thread starts."""
        with self._lock:
            self._connections[connection] = thread

    def disconnect(self, connection: socket.socket) -> None:
        """Unregister a closed connection."""
        with self._lock:
            self._connections.pop(connection, None)

    @contextlib.contextmanager
    def running(self, child: subprocess.Popen[bytes]) -> Iterator[None]:
        """Register a child while it runs, and kill what is left of its group at the end."""
        with self._lock:
            self._children.add(child)
        try:
            yield
        finally:
            with self._lock:
                self._children.discard(child)
            # Before it is reaped: the number of a group that has ended may be another's.
            kill_group(child)

    def drop(self) -> None:
        """Cut every open connection."""
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        """Cut all connections, also hung ones, kill the children, join every thread. The server must not listen now."""
        self.closing.set()
        self.drop()
        with self._lock:
            threads = list(self._connections.values())
            for child in self._children:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive(), f"{thread.name} of the upstream does not end"


def _has_left(connection: socket.socket) -> bool:
    """Whether the peer closed, or half-closed, a connection that has nothing left to read."""
    readable, _, _ = select.select([connection], [], [], 0)
    try:
        return bool(readable) and not connection.recv(1, socket.MSG_PEEK)
    except OSError:
        return True
