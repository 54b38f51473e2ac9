"""The gzipped copy of a snapshot: who gets it, its ETag and ranges, and that nobody waits for it."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from appliance.core.serving.net.road_speeds import SLOW, RoadSpeeds
from appliance.core.serving.net.seats import Peer, Seat
from appliance.core.serving.ports.tar_codings import preference
from tests.conftest import WIDGETS, ServeFactory
from tests.support.generate import add_commit
from tests.support.gitutil import fsck, git, wait_until
from tests.support.roads import SLOW as SLOW_ROAD
from tests.support.roads import Road
from tests.support.upstream import HttpUpstream
from tests.workspace.conftest import CURL, SETTLED, Guest, Node
from tests.workspace.web import Reply, get


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", None),
        ("identity", None),
        ("*", None),
        ("br, deflate", None),
        ("gzip;q=0", None),
        ("gzip;q=0.000, *", None),
        ("gzip", 1),
        ("x-gzip", 1),
        ("GZIP, deflate, br", 1),
        ("identity;q=0.5, gzip;q=0.5", 1),
        ("identity, gzip;q=0.5", 0.5),
        ("gzip;level=1", None),
        ("gzip;q=nan", None),
    ],
)
def test_what_a_header_prefers(header: str, expected: float | None) -> None:
    """As RFC 9110 has it; what is not understood is not accepted."""
    assert preference(header) == expected


def test_a_road_is_as_fast_as_it_last_was() -> None:
    """Small responses say nothing about it, and peers say nothing about each other."""

    class Nothing:
        def getsockopt(self, *_: int) -> bytes:
            raise OSError

    def seat(client: str) -> Seat:
        return Seat(Nothing(), client, 1)  # type: ignore[arg-type]

    speeds = RoadSpeeds()
    assert not speeds.is_slow(seat("10.0.0.1"))
    speeds.note(Peer("10.0.0.1"), 1000, 60)
    assert not speeds.is_slow(seat("10.0.0.1"))
    speeds.note(Peer("10.0.0.1"), int(SLOW), 1.1)
    assert speeds.is_slow(seat("10.0.0.1")) and not speeds.is_slow(seat("10.0.0.2"))
    speeds.note(Peer("10.0.0.1"), int(SLOW), 0.1)
    assert not speeds.is_slow(seat("10.0.0.1"))


def ask(node: Node, **headers: str) -> Reply:
    """A snapshot, from whoever accepts gzip."""
    return get(node.tar_url(), "GET", 60.0, accept_encoding="gzip", **headers)


def is_gzipped(reply: Reply) -> bool:
    return reply.headers.get("content-encoding") == "gzip"


@pytest.fixture(scope="module")
def copied(node: Node) -> Node:
    """The node, once the copy is there: the first who asks gets the tar itself."""
    first = ask(node)
    assert first.status == 200 and not is_gzipped(first) and first.tar().getnames()
    wait_until(lambda: is_gzipped(ask(node)), message="there is a copy")
    return node


def test_the_copy_is_the_tar(copied: Node) -> None:
    """Smaller, with an ETag of its own; whoever does not accept it gets the tar, and caches keep them apart."""
    plain, copy = get(copied.tar_url()), ask(copied)
    assert gzip.decompress(copy.body) == plain.body and len(copy.body) < len(plain.body)
    assert copy.headers["etag"] != plain.headers["etag"]
    assert copy.headers["etag"].strip('"').startswith(copied.tip)
    assert copy.headers["content-length"] == str(len(copy.body))
    assert copy.headers["x-gitmirror-commit"] == plain.headers["x-gitmirror-commit"]
    head = get(copied.tar_url(), method="HEAD", accept_encoding="gzip")
    assert head.headers["etag"] == copy.headers["etag"] and is_gzipped(head)
    for reply in (plain, copy, head, get(copied.tar_url(), if_none_match=plain.headers["etag"])):
        assert reply.headers["vary"] == "Accept-Encoding"
    for header in ("identity", "gzip;q=0", "identity, gzip;q=0.5", "br"):
        assert not is_gzipped(get(copied.tar_url(), accept_encoding=header)), header


def test_either_tag_is_not_modified(copied: Node) -> None:
    """A client keeps what it has, whichever it is."""
    for tag in (get(copied.tar_url()).headers["etag"], ask(copied).headers["etag"]):
        reply = ask(copied, if_none_match=tag)
        assert (reply.status, reply.headers["etag"]) == (304, tag)
    assert ask(copied, if_none_match='"another"').status == 200


def test_a_range_is_of_what_the_client_has(copied: Node) -> None:
    """By the tag in If-Range; without one, of the tar."""
    plain, copy = get(copied.tar_url()), ask(copied)
    for reply, headers in (
        (plain, {}),
        (plain, {"if_range": plain.headers["etag"]}),
        (copy, {"if_range": copy.headers["etag"]}),
    ):
        part = ask(copied, range="bytes=100-199", **headers)
        assert (part.status, part.body) == (206, reply.body[100:200])
        assert part.headers["etag"] == reply.headers["etag"] and is_gzipped(part) == is_gzipped(reply)
    assert ask(copied, range="bytes=100-199", if_range='"another"').status == 200


def test_a_copy_that_somebody_touched_is_made_anew(copied: Node) -> None:
    """As a tar that was touched is never sent unread."""
    [copy] = (copied.serve.state / "workspaces").rglob("*.tar.gz")
    copy.write_bytes(b"not gzip")
    assert not is_gzipped(ask(copied))
    wait_until(lambda: is_gzipped(ask(copied)), message="there is a copy")
    assert gzip.decompress(ask(copied).body) == get(copied.tar_url()).body


@pytest.mark.slow
def test_a_copy_goes_with_its_tar(own_node: Node) -> None:
    """Those of a replaced tar, of a killed `serve`, and what was left half made."""
    wait_until(lambda: is_gzipped(ask(own_node)), message="there is a copy")
    [old] = (own_node.serve.state / "workspaces").rglob("*.tar.gz")
    old.with_name("left.tar.gz-growing").write_bytes(b"half")
    add_commit(own_node.upstream.path(WIDGETS), "main", {"new": "file"})
    own_node.refresh()
    own_node.wait_for_snapshot()
    wait_until(lambda: not old.exists(), message="the copy has gone, though nobody has asked for another")
    wait_until(lambda: is_gzipped(ask(own_node)), message="there is a new copy")
    [new] = (own_node.serve.state / "workspaces").rglob("*.tar.gz*")
    assert new != old
    own_node.serve.kill()
    own_node.serve.start()
    own_node.serve.wait_for_repo(WIDGETS)
    own_node.wait_for_snapshot()
    assert not is_gzipped(ask(own_node))
    wait_until(lambda: is_gzipped(ask(own_node)), message="there is a copy again")


@pytest.fixture
def big_node(serve_factory: ServeFactory, upstream: HttpUpstream) -> Node:
    """A node with a snapshot of 9 MB: what is below one shows nothing about a road."""
    files = {f"large/{number}.txt": f"A line of number {number}.\n" * 10_000 for number in range(36)}
    add_commit(upstream.path(WIDGETS), "main", files)
    serve = serve_factory(repos=[upstream.url(WIDGETS)], refresh=SETTLED).start()
    serve.wait_for_repo(WIDGETS)
    node = Node(serve, upstream)
    wait_until(lambda: get(node.tar_url(), method="HEAD").status == 200, message="a snapshot")
    return node


@pytest.fixture
def slow_road(big_node: Node) -> Iterator[Road]:
    """A slow road to that node."""
    http = urlsplit(big_node.serve.http_url)
    assert http.hostname and http.port
    with Road((http.hostname, http.port), SLOW_ROAD) as road:
        yield road


@pytest.fixture
def slow_guest(big_node: Node, slow_road: Road, tmp_path: Path) -> Callable[..., Guest]:
    """Makes guests at its end."""

    def make(name: str, **env: str) -> Guest:
        address = {"GITMIRROR_HTTP": f"http://127.0.0.1:{slow_road.port}", "GITMIRROR_GIT": ""}
        return big_node.guest(tmp_path / name, tools=CURL, **address, **env)

    return make


@pytest.mark.slow
def test_a_guest_on_a_slow_road_gets_the_copy(
    big_node: Node, slow_road: Road, slow_guest: Callable[..., Guest]
) -> None:
    """The road has shown with the first guest that it is slow; the next one's workspace is half as many bytes."""
    guest, carried = slow_guest("home"), []
    for number in range(3):
        before = slow_road.carried
        guest.hydrate(guest.home / f"w{number}").hydrated(via="snapshot")
        carried.append(slow_road.carried - before)
        if number == 1:
            wait_until(lambda: is_gzipped(ask(big_node)), message="there is a copy")
    assert carried[2] < carried[0] * 0.75, carried
    assert git("status", "--porcelain", cwd=guest.home / "w2") == ""
    fsck(guest.home / "w2")


@pytest.mark.slow
def test_a_curl_that_cannot_decompress_is_no_hindrance(node: Node, tmp_path: Path) -> None:
    """It refuses the option, and the kit goes on without."""
    guest = node.guest(tmp_path / "home", tools=("tar", "timeout"))
    guest.environment()
    curl = guest.home / "bin" / "curl"
    curl.write_text(
        f'#!/bin/sh\nfor word; do [ "$word" != --compressed ] || exit 2; done\nexec {shutil.which("curl")} "$@"\n'
    )
    curl.chmod(0o755)
    assert guest.hydrate(guest.home / "w").hydrated(via="snapshot") == node.tip
