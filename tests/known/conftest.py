"""A node whose guests are known, and the roads on which they come."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import pytest

from appliance.core.api.client import call
from appliance.core.layout import Layout
from appliance.core.process.control_socket import short_name
from tests.access.conftest import OTHER, SECRET, SETTLED, TOKEN, lock, write_secret
from tests.conftest import WIDGETS
from tests.serving.conftest import audit
from tests.support.gitutil import clean_env, git, git_result, run_process
from tests.support.serve import Serve
from tests.support.upstream import HttpUpstream

PRIVATE_TOO = (WIDGETS, SECRET, OTHER)


class Forwarder:
    """Listens on a port of loopback as a guest's own forwarder does, and connects each connection by `connect`."""

    def __init__(self, connect: Callable[[], socket.socket]) -> None:
        self._connect = connect
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.address: tuple[str, int] = self._listening.getsockname()[:2]
        self._acceptor = threading.Thread(target=self._run, daemon=True)
        self._acceptor.start()

    def close(self) -> None:
        """Takes no more connections."""
        # A thread that waits in accept would go on at whatever gets the number of a socket that was only closed.
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._acceptor.join(60)
        self._listening.close()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listening.accept()
                threading.Thread(target=self._forward, args=(near,), daemon=True).start()

    def _forward(self, near: socket.socket) -> None:
        with near, contextlib.suppress(OSError), self._connect() as far, selectors.DefaultSelector() as selector:
            selector.register(near, selectors.EVENT_READ, far)
            selector.register(far, selectors.EVENT_READ, near)
            while selector.get_map():
                for key, _ in selector.select():
                    source, target = key.fileobj, key.data
                    assert isinstance(source, socket.socket)
                    if data := source.recv(65536):
                        target.sendall(data)
                    else:
                        selector.unregister(source)
                        target.shutdown(socket.SHUT_WR)


def by_unix(path: str) -> Callable[[], socket.socket]:
    """Connects to a unix socket, as Firecracker delivers a connection of its guest."""

    def connect() -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        with short_name(Path(path)) as name:
            connection.connect(name)
        return connection

    return connect


def from_address(address: str, port: int) -> Callable[[], socket.socket]:
    """Connects to a port of loopback from another address of it."""
    return lambda: socket.create_connection(("127.0.0.1", port), 60, (address, 0))


@dataclass
class Road:
    """How one guest comes: by a forwarder each for git:// and HTTP."""

    git: Forwarder
    http: Forwarder

    @property
    def git_url(self) -> str:
        """Of the guest's own git:// port."""
        return "git://{}:{}".format(*self.git.address)

    @property
    def http_url(self) -> str:
        """Of the guest's own HTTP port."""
        return "http://{}:{}".format(*self.http.address)

    def url(self, protocol: str, repo: str = WIDGETS) -> str:
        """Of a repository, for git."""
        return f"{self.git_url if protocol == 'git' else self.http_url}/{repo}"

    def close(self) -> None:
        """Ends it."""
        self.git.close()
        self.http.close()


@dataclass
class KnownNode:
    """A node with an open repository and two private ones, and the roads of its guests."""

    serve: Serve
    upstream: HttpUpstream
    sockets: Path
    roads: list[Road] = field(default_factory=list)

    def __enter__(self) -> KnownNode:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for road in self.roads:
            road.close()

    def add(self, name: str, **order: Any) -> dict[str, Any]:
        """Makes a guest known, by a socket unless `order` says how it comes."""
        if not order.keys() & {"unix", "address", "token"}:
            order["unix"] = self.path(name)
        return dict(call(Layout(self.serve.state), "POST", "/v1/guests", {"name": name, **order}))

    def remove(self, name: str) -> dict[str, Any]:
        """Forgets a guest."""
        return dict(call(Layout(self.serve.state), "DELETE", f"/v1/guests/{name}"))

    def path(self, name: str) -> str:
        """Of a guest's sockets."""
        return str(self.sockets / f"{name}.sock")

    def by_socket(self, name: str) -> Road:
        """The road of a guest that comes by its sockets."""
        return self._road(by_unix(f"{self.path(name)}_9418"), by_unix(f"{self.path(name)}_9419"))

    def by_address(self, address: str) -> Road:
        """The road of a guest that comes from an address."""
        http_port = urlsplit(self.serve.http_url).port or 0
        return self._road(from_address(address, self.serve.git_address[1]), from_address(address, http_port))

    def _road(self, git_road: Callable[[], socket.socket], http_road: Callable[[], socket.socket]) -> Road:
        self.roads.append(Road(Forwarder(git_road), Forwarder(http_road)))
        return self.roads[-1]

    @property
    def mirror(self) -> Path:
        """Of the open repository."""
        return self.serve.mirror(WIDGETS)

    @property
    def tip(self) -> str:
        """Of its main branch."""
        return git("rev-parse", "refs/heads/main", cwd=self.mirror)

    def refs_of_agents(self) -> dict[str, str]:
        """What was recorded in the open repository."""
        text = git("for-each-ref", "--format=%(refname) %(objectname)", "refs/agents/", cwd=self.mirror)
        return dict(line.split() for line in text.splitlines())

    def newest(self, session: str | None = None) -> dict[str, Any]:
        """The newest row of the log (of a session)."""
        return next(row for row in audit(self.serve) if session in (None, row["session"]))

    def kit(self, road: Road, home: Path, *words: str, repo: str = WIDGETS, **more: str) -> tuple[int, str, str]:
        """Runs the guest kit in a guest on that road: its exit code, the last line of stdout, and stderr."""
        home.mkdir(exist_ok=True)
        script = home / "guest.sh"
        if not script.exists():
            script.write_text(self.serve.here("guest-kit"))
        env = clean_env(
            home,
            GITMIRROR_GIT=road.git_url,
            GITMIRROR_HTTP=road.http_url,
            GITMIRROR_UPSTREAM=self.upstream.url(repo),
            GITMIRROR_DEADLINE="30",
            **more,
        )
        done = run_process(["sh", str(script), *words], env=env, timeout=90)
        lines = done.stdout.decode().splitlines()
        return done.returncode, lines[-1] if lines else "", done.stderr.decode()


def known_node(place: Path, bare: Path, writers: str) -> Iterator[KnownNode]:
    """Yields a node on which `writers` may push."""
    token_file = write_secret(place / "token", TOKEN + "\n")
    with (
        HttpUpstream(place / "upstream") as upstream,
        # Short, because a guest's path is one that a VMM can connect to.
        tempfile.TemporaryDirectory(prefix="gm") as sockets,
    ):
        for name in PRIVATE_TOO:
            upstream.add(name, bare)
        lock(upstream, SECRET, OTHER)
        credentials = [{"url": upstream.url(name), "token_file": str(token_file)} for name in (SECRET, OTHER)]
        with Serve(
            place / "state",
            repos=[upstream.url(name) for name in PRIVATE_TOO],
            refresh=SETTLED,
            credentials=credentials,
            recording={"writers": writers},
            guests={"socket_directories": [sockets]},
        ).start() as serve:
            for name in PRIVATE_TOO:
                serve.wait_for_repo(name)
            with KnownNode(serve, upstream, Path(sockets)) as node:
                yield node


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, generated_bare: Path) -> Iterator[KnownNode]:
    """A node that the tests of a module share. Who is not known may not push."""
    yield from known_node(tmp_path_factory.mktemp("known"), generated_bare, "guests")


@pytest.fixture
def own_known_node(tmp_path: Path, generated_bare: Path) -> Iterator[KnownNode]:
    """A node of this test alone. Everybody may push."""
    (tmp_path / "place").mkdir()
    yield from known_node(tmp_path / "place", generated_bare, "anyone")


def work_of(road: Road, path: Path, protocol: str = "git", repo: str = WIDGETS) -> Path:
    """A guest's clone, on its road."""
    git("clone", "--quiet", "--depth=1", road.url(protocol, repo), str(path))
    return path


def ls_remote(url: str, env: Mapping[str, str] | None = None) -> tuple[int, str]:
    """What `git ls-remote` says: its exit code, and what it prints or why not."""
    env = env or clean_env(Path(os.environ["HOME"]))
    code, out, err = git_result("ls-remote", url, "HEAD", env={**env, "GIT_TERMINAL_PROMPT": "0"})
    return code, out if code == 0 else err
