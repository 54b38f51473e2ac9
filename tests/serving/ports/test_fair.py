"""One address, whatever it does with its connections, keeps no other address from being served."""

from __future__ import annotations

import contextlib
import gzip
import os
import random
import resource
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import WIDGETS
from tests.serving.conftest import BIG, SETTLED, Node, is_whole_pack
from tests.serving.fetch.conftest import clients_of, metric, wait_warm
from tests.serving.fetch.wire import HttpGuest, fetch_request, pack_of, read_answer, v2_request
from tests.support.generate import add_commit
from tests.support.gitutil import git, wait_until
from tests.support.pkt import DELIM, FLUSH, pkt, read_pkts
from tests.support.serve import Serve, Value
from tests.support.upstream import HttpUpstream

HERE, THERE = "127.0.0.1", "127.0.0.2"
"""Two addresses of one machine: to the node they are two."""
FIRST = pkt(f"git-upload-pack /{WIDGETS}\0host=x\0\0version=2\0")
POST = f"POST /{WIDGETS}/git-upload-pack HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-git-upload-pack-request\r\n"
MIB = 2**20


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, generated_bare: Path) -> Iterator[Node]:
    """A node with few places, so that they are soon taken, and a repository larger than a socket's buffers."""
    base = tmp_path_factory.mktemp("fair")
    limits: dict[str, Value] = {"max_clients": 16, "queue_timeout": "60s", "request_timeout": "120s"}
    with HttpUpstream(base / "upstream") as upstream:
        add_commit(upstream.add(BIG, generated_bare), "main", {"noise.bin": random.Random(7).randbytes(16 * MIB)})
        upstream.add(WIDGETS, generated_bare)
        with Serve(
            base / "state",
            repos=[upstream.url(BIG), upstream.url(WIDGETS)],
            refresh=SETTLED,
            serve=limits,
            workspace={"enabled": False},
        ).start() as serve:
            for name in (BIG, WIDGETS):
                serve.wait_for_repo(name)
                wait_warm(serve, name)
            yield Node(serve, upstream)


def address_of(serve: Serve, *, http: bool) -> tuple[str, int]:
    """Host and port of a guests' port."""
    host, port = (serve.http_url if http else serve.git_url).rpartition("/")[2].split(":")
    return host, int(port)


def connect(serve: Serve, source: str, *, http: bool, timeout: float = 60) -> socket.socket:
    """A connection that comes from one of this machine's addresses."""
    return socket.create_connection(address_of(serve, http=http), timeout=timeout, source_address=(source, 0))


def lists_refs(serve: Serve, source: str) -> bool:
    """Whether a guest at that address is answered over git://."""
    with connect(serve, source, http=False) as sock:
        sock.sendall(FIRST)
        if not (read_pkts(sock) or [b""])[0].startswith(b"version 2"):
            return False
        sock.sendall(v2_request("ls-refs", ["peel"]))
        return read_answer(sock).endswith(FLUSH)


def is_healthy(serve: Serve, source: str) -> bool:
    """Whether a guest at that address is answered over HTTP."""
    with connect(serve, source, http=True) as sock:
        sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        return b" 200 " in sock.recv(4096)


def rss(serve: Serve) -> int:
    """Bytes of memory that `serve` has now, its files in memory included."""
    text = Path(f"/proc/{serve.pid}/status").read_text()
    held = 1024 * int(text.partition("VmRSS:")[2].split()[0])
    for each in Path(f"/proc/{serve.pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            held += each.stat().st_size if str(each.readlink()).startswith("/memfd:request") else 0
    return held


def test_many_idle_connections_of_one_address_keep_no_other_out(node: Node) -> None:
    """On both ports, silent and in the middle of a request, three times as many as there is room for."""
    most = 16 * 4 + 64
    with contextlib.ExitStack() as stack:
        for number in range(3 * most):
            sock = stack.enter_context(connect(node.serve, HERE, http=bool(number % 2)))
            sock.sendall((b"", b"GET /he", b"", FIRST)[number % 4] if number % 2 == 0 or number % 4 == 1 else b"GET ")
        for _ in range(5):
            assert lists_refs(node.serve, THERE)
            assert is_healthy(node.serve, THERE)
        # Whoever has room says so by staying connected.
        kept = [stack.enter_context(connect(node.serve, THERE, http=True)) for _ in range(10)]
        for sock in kept:
            sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b" 200 " in sock.recv(4096)
    wait_until(lambda: clients_of(node.serve) == 0, timeout=60, message="all connections have ended")


@pytest.mark.slow
def test_stalled_readers_of_one_address_make_way_for_another(node: Node) -> None:
    """Guests of one address that read nothing take all slots, and more wait. Another address is still served."""
    serve = node.serve
    request = fetch_request(git("rev-parse", "main", cwd=serve.mirror(BIG)), "ofs-delta")
    first = FIRST.replace(WIDGETS.encode(), BIG.encode())
    first = b"%04x" % len(first) + first[4:]
    with contextlib.ExitStack() as stack:
        for _ in range(24):
            sock = stack.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.bind((HERE, 0))
            sock.connect(address_of(serve, http=False))
            sock.sendall(first + request)
        wait_until(lambda: metric(serve, "gitmirror_queue") >= 8, timeout=60, message="all places are taken")
        assert lists_refs(serve, THERE), "before its own patience ends"
        # One that reads has its answer whole, wherever it is.
        with connect(serve, THERE, http=False, timeout=90) as sock:
            sock.sendall(first)
            read_pkts(sock)
            sock.sendall(request)
            assert is_whole_pack(pack_of(read_answer(sock)))
    wait_until(lambda: clients_of(serve) == 0, timeout=60, message="all connections have ended")


def test_all_places_are_one_addresss_while_nobody_else_wants_them(node: Node) -> None:
    """Guests behind one proxy share an address: ten times as many as there are places are all served."""
    failed = []

    def guest() -> None:
        if not lists_refs(node.serve, HERE):
            failed.append(1)

    threads = [threading.Thread(target=guest) for _ in range(120)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failed


def half_a_request(size: int) -> bytes:
    """A fetch without its end, of so many bytes, in as few as gzip makes of them."""
    lines = pkt("command=fetch") + DELIM + pkt(b"x" * 60_000) * (size // 60_000)
    body = gzip.compress(lines)
    head = f"{POST}Git-Protocol: version=2\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head.encode() + b"%x\r\n%s\r\n" % (len(body), body)


@pytest.mark.slow
def test_half_sent_requests_keep_no_fetch_from_others(node: Node) -> None:
    """213 KB unpack to the whole budget for requests. Small requests continue, and large ones after a moment."""
    serve = node.serve
    tip = git("rev-parse", "main", cwd=serve.mirror(WIDGETS))
    large = v2_request("fetch", [f"want {tip}", *(f"have {number:040x}" for number in range(20_000)), "done"])
    with contextlib.ExitStack() as stack:
        before = rss(serve)
        for _ in range(8):
            sock = stack.enter_context(connect(serve, HERE, http=True))
            sock.sendall(half_a_request(16 * MIB))
        wait_until(lambda: rss(serve) - before > 64 * MIB, timeout=60, message="they are held")
        # Those that are half sent time out after two minutes, longer than anybody waits here.
        assert lists_refs(serve, THERE) and lists_refs(serve, HERE)
        with HttpGuest(serve.http_url) as guest:
            headers = {"Content-Type": "application/x-git-upload-pack-request", "Git-Protocol": "version=2"}
            reply = guest.ask("POST", f"/{WIDGETS}/git-upload-pack", headers, large)
            assert reply.status == 200 and is_whole_pack(pack_of(reply.body))


@pytest.mark.slow
def test_bodies_of_protocol_v0_are_counted_as_they_unpack(node: Node) -> None:
    """Twelve requests of 32 KB used to take 425 MiB. Now they wait for each other, and none is held twice."""
    serve = node.serve
    body = gzip.compress(pkt(b"x" * 60_000) * (31 * MIB // 60_000))
    head = f"{POST}Content-Encoding: gzip\r\nContent-Length: {len(body) + 99}\r\n\r\n".encode()
    before, most = rss(serve), 0
    with contextlib.ExitStack() as stack:
        for _ in range(12):
            stack.enter_context(connect(serve, HERE, http=True)).sendall(head + body)
        wait_until(lambda: rss(serve) - before > 60 * MIB, timeout=60, message="some are held")
        until = time.monotonic() + 4
        while time.monotonic() < until:
            most = max(most, rss(serve))
            assert is_healthy(serve, THERE)
    assert most - before < 200 * MIB


def test_a_node_without_descriptors_serves_again_when_it_has_some(node: Node) -> None:
    """Guests wait in the backlog, nothing dies of it, and the log says so once in a while."""
    serve = node.serve
    # What the tests before hold is given back first; it would count as used, and against this address.
    wait_until(lambda: clients_of(serve) == 0, message="nobody is connected")
    wait_until(lambda: serve.processes() == [serve.pid], message="no git runs")
    usual = resource.prlimit(serve.pid, resource.RLIMIT_NOFILE)
    assert usual[0] == usual[1] or usual[0] >= 65536, "serve takes what it may have"
    used = {int(each) for each in os.listdir(f"/proc/{serve.pid}/fd")}
    fourth = [each for each in range(len(used) + 10) if each not in used][3]
    said = len(serve.log())
    with contextlib.ExitStack() as stack:
        resource.prlimit(serve.pid, resource.RLIMIT_NOFILE, (fourth, usual[1]))
        try:
            waiting = [stack.enter_context(connect(serve, HERE, http=True)) for _ in range(fourth + 20)]
            wait_until(lambda: "cannot accept" in serve.log()[said:], message="it ran out")
        finally:
            resource.prlimit(serve.pid, resource.RLIMIT_NOFILE, usual)
        for sock in waiting:
            sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b" 200 " in sock.recv(4096)
    assert lists_refs(serve, THERE)


def test_guests_that_wait_for_an_upstream_take_no_slots(node: Node) -> None:
    """More of them than there are slots ask for a commit that is not here, while the upstream hangs."""
    serve, asked = node.serve, 40
    request = f"GET /{WIDGETS}/freshness?want={'0' * 39}1 HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    node.upstream.on(WIDGETS).hang = True
    with contextlib.ExitStack() as stack:
        try:
            waiting = [stack.enter_context(connect(serve, HERE, http=True)) for _ in range(asked)]
            for sock in waiting:
                sock.sendall(request)
            wait_until(lambda: node.upstream.hanging, message="a refresh hangs")
            assert metric(serve, "gitmirror_queue") == 0
            assert lists_refs(serve, HERE) and lists_refs(serve, THERE)
            assert node.upstream.hanging, "the guests were served while it hung"
        finally:
            node.upstream.on(WIDGETS).hang = False
        assert all(b'"has": false' in sock.recv(65536) for sock in waiting)
