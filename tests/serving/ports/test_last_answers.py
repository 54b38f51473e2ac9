"""A connection ends with the last answer of an operation, whether or not the guest closes its side."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

import pytest

from tests.conftest import WIDGETS
from tests.serving.conftest import Node, is_whole_pack, make_turn, read_all, want_v0
from tests.serving.fetch.wire import (
    SHALLOW,
    HttpGuest,
    fetch_request,
    open_v2,
    pack_of,
    post_headers,
    read_answer,
    v2_request,
)
from tests.support.gitutil import git, wait_until
from tests.support.pkt import FLUSH, ZERO, daemon_request, pkt, push_bytes, read_pkts

INFO = f"/{WIDGETS}/info/refs?service=git-upload-pack"
FETCH = f"/{WIDGETS}/git-upload-pack"
PUSH = f"/{WIDGETS}/git-receive-pack"
LIST = v2_request("ls-refs", ["ref-prefix HEAD"])
IN_TIME = 30.0
"""Seconds: less than `idle_timeout`. That HTTP does not keep a connection is in its headers, too."""


def ends_within(sock: socket.socket, seconds: float) -> bytes:
    """What still comes up to the end of the stream, which must come in time; the socket stays open on our side."""
    sock.settimeout(seconds)
    return read_all(sock)


def stays_open(sock: socket.socket) -> None:
    """The connection still answers."""
    sock.sendall(LIST)
    assert b"HEAD" in read_answer(sock)


@pytest.mark.slow
def test_a_connection_over_git_ends_with_the_pack(node: Node) -> None:
    """The refs, then the pack, then the end; the server forgets it soon, although the guest never closes."""
    with open_v2(node.serve, WIDGETS) as sock:
        stays_open(sock)
        sock.sendall(fetch_request(node.tip, *SHALLOW))
        assert is_whole_pack(pack_of(read_answer(sock)))
        assert ends_within(sock, IN_TIME) == b""
        wait_until(lambda: closed_by_peer(sock), timeout=10, message="the connection is closed")


def closed_by_peer(sock: socket.socket) -> bool:
    """Whether the other side has closed, and not only ended its own direction: what we send is reset."""
    try:
        sock.sendall(b"0")
    except OSError:
        return True
    return False


def negotiation(node: Node, *lines: str) -> bytes:
    """A round of a guest that has a commit before the tip and does not say `done`."""
    return v2_request("fetch", ["thin-pack", "ofs-delta", f"want {node.tip}", *lines])


def test_a_round_without_a_pack_is_not_the_last(node: Node) -> None:
    """A guest that has nothing in common so far goes on; the same request with a common commit gets the pack."""
    parent = git("rev-parse", f"{node.tip}~1", cwd=node.mirror)
    with open_v2(node.serve, WIDGETS) as sock:
        sock.sendall(negotiation(node, f"have {'1' * 40}"))
        assert read_answer(sock) == pkt("acknowledgments\n") + pkt("NAK\n") + FLUSH
        stays_open(sock)
        sock.sendall(negotiation(node, f"have {parent}"))
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
        assert answer.startswith(pkt("acknowledgments\n") + pkt(f"ACK {parent}\n") + pkt("ready\n") + b"0001")
        assert answer.endswith(FLUSH) and pack_of(answer)[:4] == b"PACK"


def test_what_was_sent_ahead_is_answered_all_the_same(node: Node) -> None:
    """Two packs and a listing in one write."""
    request = fetch_request(node.tip, *SHALLOW)
    with open_v2(node.serve, WIDGETS) as sock:
        sock.sendall(request + request + LIST)
        assert is_whole_pack(pack_of(read_answer(sock)))
        assert is_whole_pack(pack_of(read_answer(sock)))
        assert b"HEAD" in read_answer(sock)


@pytest.mark.parametrize("version", [0, 1])
def test_older_protocols_end_too(node: Node, version: int) -> None:
    """git daemon serves them, and its end is the connection's."""
    extra = [f"version={version}"] if version else []
    with daemon_request(*node.serve.git_address, "git-upload-pack", f"/{WIDGETS}", extra) as sock:
        read_pkts(sock)
        sock.sendall(want_v0(node.tip))
        assert is_whole_pack(ends_within(sock, 10).removeprefix(pkt("NAK\n")))


def test_bytes_behind_the_last_request_reset_nothing(node: Node) -> None:
    """A guest that reads late, and meanwhile sends something that nobody asked for, still gets all of it."""
    with open_v2(node.serve, WIDGETS) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32768)
        sock.sendall(fetch_request(node.tip, "no-progress", "ofs-delta"))
        head = sock.recv(1024)
        for _ in range(10):
            time.sleep(0.02)
            sock.sendall(FLUSH)
        assert is_whole_pack(pack_of(head + read_all(sock)))


GIT = {"User-Agent": "git/2.39.5"}


@pytest.mark.parametrize("compressed", [False, True])
def test_git_over_http_is_told_that_the_connection_ends(node: Node, compressed: bool) -> None:
    """After the pack, not after the refs. Other clients keep theirs."""
    headers = post_headers() | ({"Accept-Encoding": "gzip"} if compressed else {})
    with HttpGuest(node.serve.http_url) as guest:
        assert "connection" not in guest.ask("GET", INFO, GIT | {"Git-Protocol": "version=2"}).headers
        assert "connection" not in guest.ask("POST", FETCH, headers | GIT, LIST).headers
        assert "connection" not in guest.ask("POST", FETCH, headers, fetch_request(node.tip, *SHALLOW)).headers
        last = guest.ask("POST", FETCH, headers | GIT, fetch_request(node.tip, *SHALLOW))
        assert last.headers["connection"] == "close" and is_whole_pack(pack_of(last.body))
        assert ends_within(guest.sock, IN_TIME) == b""


def test_a_round_of_git_over_http_says_whether_it_is_the_last(node: Node) -> None:
    """The head goes out with the first line that decides it."""
    parent = git("rev-parse", f"{node.tip}~1", cwd=node.mirror)
    with HttpGuest(node.serve.http_url) as guest:
        reply = guest.ask("POST", FETCH, post_headers() | GIT, negotiation(node, f"have {'1' * 40}"))
        assert reply.body.endswith(pkt("NAK\n") + FLUSH) and "connection" not in reply.headers
        reply = guest.ask("POST", FETCH, post_headers() | GIT, negotiation(node, f"have {parent}"))
        assert b"packfile" in reply.body and reply.headers["connection"] == "close"


def test_git_over_http_of_version_0_ends_too(node: Node) -> None:
    """The request that says `done` is the last."""
    request = pkt(f"want {node.tip} ofs-delta\n") + FLUSH + pkt("done\n")
    with HttpGuest(node.serve.http_url) as guest:
        reply = guest.ask("POST", FETCH, post_headers(version=0) | GIT, request)
        assert reply.headers["connection"] == "close" and is_whole_pack(reply.body.removeprefix(pkt("NAK\n")))


def test_a_push_over_http_ends_with_its_report(node: Node) -> None:
    """But not with the probe that git sends before a large one."""
    turn = make_turn(node.mirror, "the last answer")
    headers = post_headers("git-receive-pack") | GIT
    with HttpGuest(node.serve.http_url) as guest:
        assert "connection" not in guest.ask("POST", PUSH, headers, FLUSH).headers
        body = push_bytes([(ZERO, turn.commit, "refs/agents/last-answer")], turn.pack)
        reply = guest.ask("POST", PUSH, headers, body)
        assert b"unpack ok" in reply.body and reply.headers["connection"] == "close"
        assert ends_within(guest.sock, IN_TIME) == b""


@pytest.mark.slow
def test_a_connection_that_asks_no_more_is_not_kept_for_long(node: Node) -> None:
    """git that only listed the refs is gone, and a tunnel may not tell us; it ends in good order."""
    with HttpGuest(node.serve.http_url) as guest:
        start = time.monotonic()
        assert guest.ask("GET", "/healthz").status == 200
        assert guest.rest() == b""
        # Without that it would be kept for idle_timeout, five minutes.
        assert 2 < time.monotonic() - start < 20


@pytest.mark.parametrize("ask", [lambda url: url, lambda url: url.upper().replace("/HEALTHZ", "/healthz")])
def test_a_whole_address_is_a_path_too(node: Node, ask: Callable[[str], str]) -> None:
    """As a proxy may pass it on (RFC 9112, section 3.2.2); what `Connection: close` asks for is done as well."""
    with HttpGuest(node.serve.http_url) as guest:
        reply = guest.ask("GET", ask(f"{node.serve.http_url}/healthz"), {"Connection": "close"})
        assert (reply.status, reply.body, reply.headers["connection"]) == (200, b"ok\n", "close")
        assert ends_within(guest.sock, IN_TIME) == b""
    with HttpGuest(node.serve.http_url) as guest:
        assert guest.ask("GET", f"{node.serve.http_url}{INFO}").status == 200
        assert guest.ask("GET", node.serve.http_url).status == 404
