"""What guests are being sent now, and how it is recorded when one breaks it off."""

from __future__ import annotations

import errno
import socket
from typing import Any
from urllib.parse import urlsplit

import pytest

from appliance.core.api.client import call, pages
from appliance.core.errors import GitmirrorError
from appliance.core.layout import Layout
from appliance.core.serving.fetch.cached_response import AnswerFailed
from appliance.core.serving.fetch.transfers import outcome_of, road_of
from appliance.core.serving.net.streams import IdleTimeout
from tests.conftest import WIDGETS, ServeFactory
from tests.serving.conftest import BIG, SETTLED, Node
from tests.serving.fetch.conftest import Counting, GatedNode, metric, wait_kept, wait_warm
from tests.serving.fetch.wire import ask, fetch_request, open_v2, pack_of
from tests.support.gitutil import git, wait_until
from tests.support.serve import Serve
from tests.support.upstream import HttpUpstream


def transfers_of(serve: Serve) -> list[dict[str, Any]]:
    """What is being sent now."""
    return list(call(Layout(serve.state), "GET", "/v1/transfers"))


def last_of(serve: Serve, outcome: str, way: str) -> dict[str, Any] | None:
    """The last hydration, once it is recorded: it has this outcome and way."""
    found = next(pages(Layout(serve.state), "/v1/activity"), None)
    return found if found and (found["outcome"], found["way"]) == (outcome, way) else None


def test_a_guest_that_hangs_up_while_its_answer_is_made_is_gone(gated_node: GatedNode) -> None:
    """Over TCP its end shows when it is sent something, which git does once a second. The answer is made all the same,
    for whoever asks for it next; it is no miss of this guest, because it got nothing of it."""
    node, gate = gated_node, gated_node.gate
    request = fetch_request(node.tip, "no-progress", "ofs-delta", "deepen 3")
    counting = Counting(node.serve)
    gate.close()
    with open_v2(node.serve, WIDGETS) as guest:
        guest.sendall(request)
        [running] = wait_until(lambda: [each for each in transfers_of(node.serve) if each["bytes"]], message="it runs")
        facts = {"repo": WIDGETS, "want": node.tip, "way": "miss", "protocol": "git", "road": "tcp", "size": None}
        assert facts.items() <= running.items() and running["client"] == "127.0.0.1" and running["seconds"] > 0
        assert "depth 3" in running["shape"] and running["guest"] is None
    wait_until(lambda: not transfers_of(node.serve), timeout=60, message="it is gone from the list")
    row = wait_until(lambda: last_of(node.serve, "aborted", "miss"), message="it is recorded as broken off")
    assert row["want"] == node.tip and 0 < row["bytes"] < 30_000
    assert counting.since() == {}
    gate.open()
    wait_kept(node.serve)
    assert pack_of(ask(node.serve, WIDGETS, request))
    wait_until(lambda: last_of(node.serve, "complete", "hit"), message="the next one has it")
    assert counting.since() == {"hits": 1}


def test_one_that_only_ends_its_side_gets_its_answer(gated_node: GatedNode) -> None:
    """It still reads, so it is there."""
    node, gate = gated_node, gated_node.gate
    gate.close()
    with open_v2(node.serve, WIDGETS) as guest:
        guest.sendall(fetch_request(node.tip, "no-progress", "ofs-delta", "deepen 4"))
        guest.shutdown(socket.SHUT_WR)
        wait_until(lambda: any(each["bytes"] for each in transfers_of(node.serve)), message="it runs")
        gate.open()
        assert pack_of(b"".join(iter(lambda: guest.recv(65536), b"")))
    wait_until(lambda: last_of(node.serve, "complete", "miss"), message="it is recorded")


@pytest.fixture
def big(serve_factory: ServeFactory, upstream: HttpUpstream, big_bare: Any) -> Node:
    """A node with a repository that fits in no buffer of a socket."""
    upstream.add(BIG, big_bare)
    serve = serve_factory(repos=[upstream.url(BIG)], refresh=SETTLED).start()
    serve.wait_for_repo(BIG)
    wait_warm(serve, BIG)
    return Node(serve, upstream)


def half_read(address: tuple[str, int], request: bytes) -> socket.socket:
    """A guest that sends a request and reads the first MiB of what it gets."""
    guest = socket.socket()
    guest.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    guest.settimeout(60)
    guest.connect(address)
    guest.sendall(request)
    read_some(guest)
    return guest


def read_some(guest: socket.socket) -> None:
    """Reads a MiB. The kernel acknowledges what was read last a little later, and not if the guest resets before."""
    left = 2**20
    while left > 0:
        left -= len(guest.recv(65536))


@pytest.mark.slow
def test_a_download_that_is_broken_off_is_no_hit(big: Node) -> None:
    """Of a tar and of a cached response: while it runs, its bytes and its size are known; afterwards it is recorded
    with what was sent, and counted as broken off. It was listed as running for ever, and recorded as a hit."""
    serve, tip = big.serve, git("rev-parse", "refs/heads/main", cwd=big.serve.mirror(BIG))
    http = urlsplit(serve.http_url)
    tar = f"GET /{BIG}/workspace.tar HTTP/1.1\r\nHost: mirror\r\n\r\n".encode()
    wanted = fetch_request(tip, "no-progress", "include-tag", "ofs-delta")
    assert ask(serve, BIG, wanted)
    wait_kept(serve)
    counting, complete = Counting(serve), metric(serve, "gitmirror_hydrations_total", repo=BIG)
    for way in ("snapshot", "hit"):
        if way == "snapshot":
            guest = half_read((http.hostname or "", http.port or 0), tar)
        else:
            guest = open_v2(serve, BIG)
            guest.sendall(wanted)
            read_some(guest)
        [running] = wait_until(lambda: transfers_of(serve), message="it runs")
        assert running["way"] == way and 0 < running["bytes"] < running["size"] > 20_000_000
        guest.close()
        wait_until(lambda: not transfers_of(serve), timeout=60, message="it is gone from the list")
        row = wait_until(lambda way=way: last_of(serve, "aborted", way), message="it is recorded")  # type: ignore[misc]
        assert 60_000 < row["bytes"] < running["size"]
    assert counting.since() == {}
    assert metric(serve, "gitmirror_hydrations_broken_off_total", repo=BIG, outcome="aborted") == 2
    assert metric(serve, "gitmirror_hydrations_total", repo=BIG) == complete
    assert metric(serve, "gitmirror_transfers") == 0


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (ConnectionResetError(), "aborted"),
        (IdleTimeout(), "aborted"),
        (AnswerFailed(), "failed"),
        (GitmirrorError("it is damaged"), "failed"),
        (OSError(errno.EMFILE, "too many open files"), "failed"),
    ],
)
def test_whose_fault_it_was(error: Exception, outcome: str) -> None:
    assert outcome_of(error) == outcome


@pytest.mark.parametrize(
    ("client", "road"),
    [("10.0.0.7", "tcp"), ("fd00::7", "tcp"), ("unix:vm-7", "unix"), ("vsock:3", "vsock"), ("vsock", "tcp")],
)
def test_the_road_is_in_the_name(client: str, road: str) -> None:
    assert road_of(client) == road
