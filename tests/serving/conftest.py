"""A node with several repositories, guests that push to it, and checks of the audit log."""

from __future__ import annotations

import contextlib
import hashlib
import random
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from appliance.core.api.client import call
from appliance.core.layout import Layout
from appliance.core.node.state_dir import open_stores
from tests.conftest import WIDGETS, ServeFactory
from tests.support.generate import add_commit, copy_repository
from tests.support.gitutil import clean_env, commit_files, fsck, git, refs, run_process, wait_until
from tests.support.pkt import (
    DELIM,
    EMPTY_PACK,
    FLUSH,
    PushAnswer,
    PushConnection,
    daemon_request,
    pkt,
    raw_push,
    read_pkt,
    read_pkts,
)
from tests.support.serve import Serve
from tests.support.upstream import HttpUpstream

DEEP = "group/sub/tools"
"""The path of an upstream repository that lies deeper than OWNER/REPO; it is registered as `sub/tools`."""
BIG = "acme/big"
"""A repository whose clone does not fit in any socket buffer."""
SETTLED = {"interval": "1h", "stale_after": "1d"}
"""`[refresh]` of a node that has no reason to ask its upstream while a test runs."""


@dataclass(frozen=True)
class Node:
    """A running appliance and its upstream. It does not refresh by itself."""

    serve: Serve
    upstream: HttpUpstream

    @property
    def url(self) -> str:
        """Of `acme/widgets`, for git."""
        return f"{self.serve.git_url}/{WIDGETS}"

    @property
    def mirror(self) -> Path:
        """The bare mirror of `acme/widgets`."""
        return self.serve.mirror(WIDGETS)

    @property
    def tip(self) -> str:
        """The commit that `main` of the mirror is at."""
        return git("rev-parse", "refs/heads/main", cwd=self.mirror)

    def guest(self, path: Path, *options: str) -> Path:
        """Clone `acme/widgets` as an agent's guest does: shallow and without blobs unless `options` say otherwise."""
        return self.serve.clone(path, WIDGETS, *(options or ("--depth=1", "--filter=blob:none")))


@dataclass(frozen=True)
class Turn:
    """A commit that the mirror does not have yet, and a pack of what is new in it."""

    base: str
    commit: str
    pack: bytes


def make_turn(mirror: Path, text: str, *, size: int = 0, files: int = 1) -> Turn:
    """Make a commit on top of `main` beside the mirror, of so many files with `size` incompressible bytes in each.

    receive-pack unpacks a pack of fewer than 100 objects and indexes a larger one.
    """
    base, dice = git("rev-parse", "refs/heads/main", cwd=mirror), random.Random(text)
    with tempfile.TemporaryDirectory() as beside:
        env = clean_env(
            Path(beside),
            GIT_DIR=str(mirror),
            GIT_OBJECT_DIRECTORY=beside,
            GIT_ALTERNATE_OBJECT_DIRECTORIES=str(mirror / "objects"),
        )
        for number in range(files):
            Path(beside, f"{number}.txt").write_bytes(f"{text} {number}\n".encode() + dice.randbytes(size))
        paths = "".join(f"{beside}/{number}.txt\n" for number in range(files))
        blobs = git("hash-object", "-w", "--stdin-paths", env=env, input=paths).split()
        entries = "".join(f"100644 blob {blob}\t{number}.txt\n" for number, blob in enumerate(blobs))
        tree = git("mktree", env=env, input=entries)
        commit = git("commit-tree", "-p", base, "-m", text, tree, env=env)
        argv = ["git", "pack-objects", "--stdout", "--quiet"]
        packed = run_process(argv, env=env, input="\n".join((commit, tree, *blobs, "")).encode())
    assert packed.returncode == 0, packed.stderr
    return Turn(base, commit, packed.stdout)


@pytest.fixture(scope="session")
def big_bare(generated_bare: Path, make_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """The generated repository and one file of 24 MB that does not compress. Not to be written to."""

    def build(path: Path) -> None:
        copy_repository(generated_bare, path)
        add_commit(path, "main", {"noise.bin": random.Random(7).randbytes(24 * 2**20)})

    return make_once("big.git", build)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, generated_bare: Path) -> Iterator[Node]:
    """A node that all tests of a module share: none may change more than `refs/agents` of its own sessions."""
    base = tmp_path_factory.mktemp("node")
    with HttpUpstream(base / "upstream") as upstream:
        upstream.add(WIDGETS, generated_bare)
        upstream.add(DEEP, generated_bare)
        with Serve(base / "state", repos=[upstream.url(WIDGETS), upstream.url(DEEP)], refresh=SETTLED).start() as serve:
            serve.wait_for_repo(WIDGETS)
            serve.wait_for_repo("sub/tools")
            yield Node(serve, upstream)


@pytest.fixture
def own_node(serve_factory: ServeFactory, upstream: HttpUpstream) -> Node:
    """A node of this test alone."""
    serve = serve_factory(repos=[upstream.url(WIDGETS)], refresh=SETTLED).start()
    serve.wait_for_repo(WIDGETS)
    return Node(serve, upstream)


# The log


def audit(serve: Serve) -> list[dict[str, Any]]:
    """Every attempted ref, newest first, as in `audit --json`, but read without that process because this is polled."""
    stores = open_stores(Layout(serve.state), create=False)
    try:
        return stores.audit.entries()
    finally:
        stores.database.close()


def entry_of(serve: Serve, ref: str) -> dict[str, Any]:
    """The newest entry of a ref."""
    found = [entry for entry in audit(serve) if entry["ref"] == ref]
    assert found, f"no entry of {ref} in the log"
    return found[0]


def wait_settled(serve: Serve, *, timeout: float = 60.0) -> list[dict[str, Any]]:
    """Waits until no guest is connected and no attempt is open. Returns the whole log."""

    def look() -> list[dict[str, Any]] | None:
        if serve.running and clients(serve):
            return None
        entries = audit(serve)
        return None if any(entry["outcome"] == "pending" for entry in entries) else entries or [{}]

    return [entry for entry in wait_until(look, timeout=timeout, message="every attempt has an outcome") if entry]


def assert_log_is_true(node: Node, *, timeout: float = 60.0) -> list[dict[str, Any]]:
    """Every accepted attempt has an outcome, and the refs are what the applied ones made them. Returns the log.

    Only for refs that no two guests wrote at the same time.
    """
    entries = wait_settled(node.serve, timeout=timeout)
    expected: dict[str, str] = {}
    for entry in reversed(entries):
        assert (entry["outcome"] is None) == (entry["verdict"] == "rejected"), entry
        if entry["outcome"] == "applied":
            assert entry["old"] == expected.get(entry["ref"]), f"the ref was not at `old`: {entry}"
            expected[entry["ref"]] = entry["new"]
        elif entry["outcome"] == "failed":
            assert entry["reason"], f"a failure without a reason: {entry}"
    found = {ref: oid for ref, oid in refs(node.mirror).items() if ref.startswith("refs/agents/")}
    assert found == expected, "the refs are not what the log says"
    node.serve.here("audit", "verify")
    return entries


def assert_mirror_is_clean(mirror: Path) -> None:
    """Nothing of a refused or broken push is left, and every object is whole."""
    left = [path.name for path in (mirror / "objects").glob("*") if path.name.startswith(("tmp_", "incoming"))]
    left += [path.name for path in (mirror / "objects" / "pack").glob("tmp_*")]
    left += [str(path) for path in mirror.glob("refs/**/*.lock")]
    assert not left, f"left in the mirror: {left}"
    fsck(mirror)


# Guests by hand


def read_all(sock: socket.socket) -> bytes:
    """Everything up to the end of the stream. A reset raises ConnectionResetError."""
    parts = []
    while part := sock.recv(65536):
        parts.append(part)
    return b"".join(parts)


def is_whole_pack(data: bytes) -> bool:
    """Whether the bytes are a pack up to its last one: it ends with the SHA-1 of what is before."""
    return data[:4] == b"PACK" and hashlib.sha1(data[:-20]).digest() == data[-20:]


def want_v0(oid: str, capabilities: str = "ofs-delta") -> bytes:
    """The request of a v0 or v1 guest that has no objects, as sent after the advertisement."""
    return pkt(f"want {oid} {capabilities}\n") + FLUSH + pkt("done\n")


def want_v2(oid: str) -> bytes:
    """One v2 `fetch` command of a guest that has no objects."""
    return (
        pkt("command=fetch") + DELIM + b"".join(map(pkt, ("no-progress", "ofs-delta", f"want {oid}", "done"))) + FLUSH
    )


def read_pack_v2(sock: socket.socket) -> bytes:
    """The pack of a v2 answer, up to its flush."""
    pack = bytearray()
    while (line := read_pkt(sock)) is not None:
        if line[:1] == b"\1":
            pack += line[1:]
        else:
            assert line == b"packfile\n" or line[:1] == b"\2", line
    return bytes(pack)


def start_fetch(serve: Serve, repo: str, *, version: int = 0, timeout: float = 60.0) -> socket.socket:
    """Requests all of `main` and reads nothing of the response yet, except NAK in v0."""
    tip = git("rev-parse", "refs/heads/main", cwd=serve.mirror(repo))
    extra = [f"version={version}"] if version else []
    sock = daemon_request(*serve.git_address, "git-upload-pack", f"/{repo}", extra, timeout=timeout)
    read_pkts(sock)
    sock.sendall(want_v2(tip) if version == 2 else want_v0(tip))
    if version == 0:
        assert read_pkt(sock) == b"NAK\n"
    return sock


def connect(serve: Serve, first: bytes = b"", *, timeout: float = 60.0) -> socket.socket:
    """Connect to the git:// port and say `first`."""
    sock = socket.create_connection(serve.git_address, timeout=timeout)
    sock.sendall(first)
    return sock


def close_all(socks: Sequence[socket.socket]) -> None:
    """Close sockets."""
    for sock in socks:
        with contextlib.suppress(OSError):
            sock.close()


def clients(serve: Serve) -> int:
    """The number of connections in `status`, read from the control socket because this is polled."""
    return int(call(Layout(serve.state), "GET", "/v1/status")["clients"])


def seconds_of(work: Callable[[], object]) -> float:
    """How long `work` takes."""
    start = time.monotonic()
    work()
    return time.monotonic() - start


def commit_turn(guest: Path, text: str) -> str:
    """Commit one file in a guest's workspace."""
    return commit_files(guest, {"turn.txt": text}, text)


def push(serve: Serve, *commands: tuple[str, str, str], pack: bytes = EMPTY_PACK) -> PushAnswer:
    """Push by hand to `acme/widgets`."""
    return raw_push(*serve.git_address, f"/{WIDGETS}", commands, pack)


def own_refs(node: Node) -> dict[str, str]:
    """Every ref of the mirror but the sessions that tests of a shared node leave there on purpose (`kept-`)."""
    return {name: oid for name, oid in refs(node.mirror).items() if not name.startswith("refs/agents/kept-")}


def send_raw(node: Node, parts: Sequence[bytes]) -> PushAnswer:
    """Send these bytes after the advertisement, half-close, and read the answer."""
    with PushConnection(*node.serve.git_address, f"/{WIDGETS}") as connection:
        connection.send(b"".join(parts))
        connection.half_close()
        return connection.read_report()
