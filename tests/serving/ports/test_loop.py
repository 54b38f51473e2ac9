"""No request stops the event loop: each takes its turn among all others."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import WIDGETS
from tests.serving.conftest import SETTLED, Node
from tests.serving.fetch.wire import http_ask, post_headers, v2_request
from tests.support.gitutil import refs
from tests.support.pkt import FLUSH, pkt
from tests.support.serve import Serve
from tests.support.upstream import HttpUpstream
from tests.support.watchdog import Watchdog

SHORT = 1.0
"""Seconds of processor time that the loop may take for one thing at most; each attack here took many times as much."""
MANY_REFS = 20_000
POST = (
    f"POST /{WIDGETS}/git-upload-pack HTTP/1.1\r\nHost: x\r\nGit-Protocol: version=2\r\n"
    "Content-Type: application/x-git-upload-pack-request\r\n"
).encode()


@pytest.fixture(scope="module")
def watchdog(tmp_path_factory: pytest.TempPathFactory) -> Watchdog:
    """Measures the loop inside the node of this module."""
    return Watchdog(tmp_path_factory.mktemp("watchdog") / "inside")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, generated_bare: Path, watchdog: Watchdog) -> Iterator[Node]:
    """A node whose repository has 20,000 branches."""
    base = tmp_path_factory.mktemp("loop")
    with HttpUpstream(base / "upstream") as upstream:
        upstream.add(WIDGETS, generated_bare)
        with Serve(
            base / "state",
            repos=[upstream.url(WIDGETS)],
            env=watchdog.env,
            refresh=SETTLED,
            workspace={"enabled": False},
        ).start() as serve:
            serve.wait_for_repo(WIDGETS)
            node = Node(serve, upstream)
            # Written by hand: git takes half a minute to make so many.
            known = [f"{oid} {name}" for name, oid in refs(node.mirror).items()]
            tip = node.tip
            known += [f"{tip} refs/heads/many/branch-{each:06}" for each in range(MANY_REFS)]
            lines = ["# pack-refs with: sorted ", *sorted(known, key=lambda line: line.split()[1])]
            (base / "packed-refs").write_text("\n".join([*lines, ""]))
            (base / "packed-refs").rename(node.mirror / "packed-refs")
            yield node


@contextlib.contextmanager
def flooding(address: tuple[str, int], first: bytes, data: bytes, *, reads: bool = True) -> Iterator[None]:
    """A guest that says `first`, then `data` without end, and reads what it is answered."""
    done = threading.Event()
    with socket.create_connection(address, timeout=60) as sock:

        def say() -> None:
            with contextlib.suppress(OSError):
                sock.sendall(first)
                while not done.is_set():
                    sock.sendall(data)

        def read() -> None:
            with contextlib.suppress(OSError):
                while not done.is_set() and sock.recv(1 << 20):
                    pass

        threads = [threading.Thread(target=work) for work in (say, read)[: 1 + reads]]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            done.set()
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join(60)


def http_address(serve: Serve) -> tuple[str, int]:
    """Host and port of the guests' HTTP port."""
    host, port = serve.http_url.removeprefix("http://").split(":")
    return host, int(port)


def served_meanwhile(serve: Serve, seconds: float = 1.5) -> None:
    """Others are served, for so long."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        assert http_ask(f"{serve.http_url}/healthz").status == 200


@pytest.mark.slow
def test_requests_without_end_on_one_connection_leave_others_their_turn(node: Node, watchdog: Watchdog) -> None:
    """`GET /healthz` as fast as possible. These requests used to hold the loop for as long as they came."""
    watchdog.forget()
    with flooding(http_address(node.serve), b"", b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 2000):
        served_meanwhile(node.serve)
    assert watchdog.longest() < SHORT


@pytest.mark.slow
def test_a_body_in_chunks_of_one_byte_leaves_others_their_turn(node: Node, watchdog: Watchdog) -> None:
    """Also when it is only thrown away, behind an answer that was made without it."""
    watchdog.forget()
    chunks = b"1\r\nx\r\n" * 20_000
    heads = [POST, b"POST /healthz HTTP/1.1\r\nHost: x\r\n"]
    first = b"5\r\n0005x\r\n"
    for head in heads:
        with flooding(http_address(node.serve), head + b"Transfer-Encoding: chunked\r\n\r\n" + first, chunks):
            served_meanwhile(node.serve)
    assert watchdog.longest() < SHORT


@pytest.mark.slow
def test_as_many_prefixes_as_fit_against_as_many_refs(node: Node, watchdog: Watchdog) -> None:
    """Existing names, unknown names, and more lines than git keeps. Comparing every ref with every line took 39 s."""
    shown = [name for name in refs(node.mirror) if name.startswith(("refs/heads/", "refs/tags/"))]
    there = [f"refs/heads/many/branch-{number:06}" for number in range(MANY_REFS)]
    absent = [f"refs/heads/other/{number:07}" for number in range(45_000)]
    watchdog.forget()
    for names, found in (
        (absent[:40_000], 0),
        ([*there, *absent[:44_000]], MANY_REFS),
        (
            [*absent, *there, *absent],
            len([name for name in shown if name.startswith(("refs/heads/", "refs/tags/"))]) + 1,
        ),
    ):
        request = v2_request("ls-refs", [f"ref-prefix {name}" for name in names])
        reply = http_ask(f"{node.serve.http_url}/{WIDGETS}/git-upload-pack", "POST", post_headers(), request)
        assert reply.status == 200 and reply.body.count(b"\n") == found
    assert watchdog.longest() < SHORT


@pytest.mark.slow
def test_half_a_million_wants_are_worked_on_aside(node: Node, watchdog: Watchdog) -> None:
    """They are read, sorted, hashed and written for git, in two shapes, one of which is not cached."""
    watchdog.forget()
    head = v2_request("fetch", ["ofs-delta"]).removesuffix(FLUSH)
    # As `pkt` would make each, in a tenth of the time.
    wants = b"".join(b"0032want %040x\n" % (number * 7919) for number in range(500_000))
    for more in (b"", pkt("have " + "1" * 40 + "\n")):
        request = b"".join([head, wants, more, pkt("done\n"), FLUSH])
        url = f"{node.serve.http_url}/{WIDGETS}/git-upload-pack"
        reply = http_ask(url, "POST", post_headers(), request)
        assert b"not our ref" in reply.body
    assert watchdog.longest() < SHORT


@pytest.mark.slow
def test_as_many_headers_as_fit_are_soon_read(node: Node, watchdog: Watchdog) -> None:
    """Requests of nothing but short headers, one behind the other."""
    watchdog.forget()
    head = b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"a:\r\n" * 8000 + b"\r\n"
    with flooding(http_address(node.serve), b"", head * 20):
        served_meanwhile(node.serve)
    assert watchdog.longest() < SHORT
