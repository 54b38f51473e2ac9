"""Smart HTTP: every version, encoding and framing that clients use, the paths, and what is refused how."""

from __future__ import annotations

import contextlib
import gzip
import socket
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import WIDGETS, ServeFactory
from tests.serving.conftest import DEEP, SETTLED, Node, is_whole_pack
from tests.serving.fetch.conftest import TOOLS, Counting, clients_of, contents_of, wait_kept
from tests.serving.fetch.wire import (
    SHALLOW,
    HttpGuest,
    ask,
    ask_git,
    chunked,
    fetch_request,
    http_ask,
    pack_of,
    post_headers,
    v2_request,
)
from tests.support.gitutil import clean_env, fsck, git, git_result, remote_refs, run_process, wait_until
from tests.support.pkt import FLUSH, PushConnection, pkt
from tests.support.serve import Value
from tests.support.upstream import HttpUpstream

INFO = f"/{WIDGETS}/info/refs?service=git-upload-pack"
POST = f"/{WIDGETS}/git-upload-pack"
LIST = v2_request("ls-refs", ["peel", "symrefs", "unborn"])


@pytest.mark.parametrize("version", [0, 1, 2])
def test_a_clone_over_http_in_every_version(node: Node, tmp_path: Path, version: int) -> None:
    """Full, shallow, partial and incremental, through git itself."""
    url = f"{node.serve.http_url}/{WIDGETS}"
    options = ("-c", f"protocol.version={version}")
    git(*options, "clone", "--quiet", "--depth=2", url, str(tmp_path / "clone"))
    git(*options, "fetch", "--quiet", "--unshallow", cwd=tmp_path / "clone")
    git(*options, "clone", "--quiet", "--filter=blob:none", url, str(tmp_path / "lazy"))
    for name in ("clone", "lazy"):
        fsck(tmp_path / name)
        assert git("status", "--porcelain", cwd=tmp_path / name) == ""
    count = git("rev-list", "--count", "main", cwd=node.mirror)
    assert git("rev-list", "--count", "HEAD", cwd=tmp_path / "clone") == count


@pytest.mark.parametrize(
    ("asked", "first"), [("", b"# service"), ("version=1", b"# service"), ("version=2", b"version 2")]
)
def test_the_advertisement_is_gits_own(node: Node, asked: str, first: bytes) -> None:
    """What `git upload-pack` says, in the frame of gitprotocol-http, and never kept by a proxy."""
    headers = {"Git-Protocol": asked} if asked else {}
    reply = http_ask(node.serve.http_url + INFO, headers=headers)
    assert reply.status == 200
    assert reply.body[4:].startswith(first)
    assert reply.headers["content-type"] == "application/x-git-upload-pack-advertisement"
    assert "no-cache" in reply.headers["cache-control"]
    version = int(asked[-1]) if asked else 0
    argv = ("upload-pack", "--stateless-rpc", "--advertise-refs", str(node.mirror))
    expected = run_process(["git", *argv], env=clean_env(node.mirror, GIT_PROTOCOL=asked or None)).stdout
    said = reply.body.removeprefix(pkt("# service=git-upload-pack\n") + FLUSH) if version < 2 else reply.body
    assert said == expected


@pytest.mark.parametrize("words", ["version=2:version=1", "version=1:version=2", "x=1:version=2:y", "version=2"])
def test_the_highest_version_that_a_guest_names_is_spoken(node: Node, words: str) -> None:
    """As git chooses from GIT_PROTOCOL."""
    assert http_ask(node.serve.http_url + INFO, headers={"Git-Protocol": words}).body[4:13] == b"version 2"


Encode = Callable[[bytes], tuple[bytes, dict[str, str]]]

BODIES: dict[str, Encode] = {
    "plain": lambda body: (body, {}),
    "gzip": lambda body: (gzip.compress(body), {"Content-Encoding": "gzip"}),
    "x-gzip": lambda body: (gzip.compress(body), {"Content-Encoding": "x-gzip"}),
    "identity": lambda body: (body, {"Content-Encoding": "identity"}),
    "gzip in many pieces": lambda body: (_flushed(body), {"Content-Encoding": "gzip"}),
}


def _flushed(body: bytes) -> bytes:
    """gzip with a sync after every ten bytes: blocks that are empty, or hardly more."""
    compressor = zlib.compressobj(wbits=31)
    parts = []
    for at in range(0, len(body), 10):
        parts += [compressor.compress(body[at : at + 10]), compressor.flush(zlib.Z_SYNC_FLUSH)]
    return b"".join([*parts, compressor.flush()])


@pytest.mark.parametrize("framing", ["length", "chunks of 7", "chunks of 1000", "expect"])
@pytest.mark.parametrize("encode", BODIES.values(), ids=BODIES.keys())
def test_a_request_is_understood_in_every_encoding_and_framing(node: Node, encode: Encode, framing: str) -> None:
    """gzip or not, a length or chunks, with `Expect: 100-continue`: the same answer, and the connection goes on."""
    wants = git("rev-list", "main", cwd=node.mirror).split()
    request = fetch_request(wants, *SHALLOW)
    expected = ask(node.serve, WIDGETS, request)
    data, headers = encode(request)
    headers = post_headers() | headers
    with HttpGuest(node.serve.http_url) as guest:
        for _ in range(2):
            if framing.startswith("chunks"):
                guest.sock.sendall(guest.head("POST", POST, headers | {"Transfer-Encoding": "chunked"}))
                guest.sock.sendall(chunked(data, int(framing.split()[-1])))
            elif framing == "expect":
                guest.sock.sendall(
                    guest.head("POST", POST, headers | {"Content-Length": str(len(data)), "Expect": "100-continue"})
                )
                assert guest.sock.recv(1024).startswith(b"HTTP/1.1 100 ")
                guest.sock.sendall(data)
            else:
                guest.send("POST", POST, headers, data)
            reply = guest.read("POST")
            assert (reply.status, reply.body) == (200, expected)
            assert reply.headers["content-type"] == "application/x-git-upload-pack-result"


def test_v0_requests_are_gits_own(node: Node) -> None:
    """A stateless v0 request gets what `git upload-pack` answers."""
    request = pkt(f"want {node.tip} ofs-delta no-progress agent=x\n") + pkt("deepen 1") + FLUSH + pkt("done\n")
    for body in (request, gzip.compress(request)):
        encoding = {"Content-Encoding": "gzip"} if body != request else {}
        reply = http_ask(node.serve.http_url + POST, "POST", post_headers(version=0) | encoding, body)
        expected = ask_git(node.mirror, request, version=0)
        assert reply.body.split(b"PACK")[0] == expected.split(b"PACK")[0]
        assert is_whole_pack(reply.body[reply.body.index(b"PACK") :])


def test_a_large_compressed_request_is_the_same_the_second_time(node: Node) -> None:
    """Known by its bytes then, and not unpacked: the same answer, and one that is damaged is refused each time."""
    names = [f"ref-prefix refs/heads/{number:05d}-{number * 7919 % 99991}" for number in range(2000)]
    listing = v2_request("ls-refs", ["peel", *names, "ref-prefix refs/heads/main"])
    packed = gzip.compress(listing)
    assert 4096 < len(packed) < len(listing) < 2**20
    expected, encoding = ask_git(node.mirror, listing), {"Content-Encoding": "gzip"}
    with HttpGuest(node.serve.http_url) as guest:
        for _ in range(2):
            reply = guest.ask("POST", POST, post_headers() | encoding, packed)
            assert (reply.status, reply.body) == (200, expected)
    for damaged in (packed[:-2000], packed[:3000] + bytes(300) + packed[3300:]):
        for _ in range(2):
            assert http_ask(node.serve.http_url + POST, "POST", post_headers() | encoding, damaged).status == 400
    assert http_ask(node.serve.http_url + POST, "POST", post_headers() | encoding, packed).body == expected


def test_many_requests_go_over_one_connection(node: Node) -> None:
    """Kept alive, one after the other, hits and listings and errors by turns."""
    with HttpGuest(node.serve.http_url) as guest:
        for number in range(30):
            assert guest.ask("GET", INFO, {"Git-Protocol": "version=2"}).status == 200
            reply = guest.ask("POST", POST, post_headers(), LIST if number % 2 else fetch_request(node.tip, *SHALLOW))
            assert reply.status == 200 and reply.body.endswith(FLUSH)
            assert guest.ask("GET", "/nothing/here").status == 404
            assert guest.ask("HEAD", INFO).body == b""


def test_pipelined_requests_are_answered_in_order(node: Node) -> None:
    """Sent at once, answered one by one."""
    with HttpGuest(node.serve.http_url) as guest:
        for number in range(20):
            guest.send("POST", POST, post_headers(), v2_request("ls-refs", [f"ref-prefix refs/tags/v0.{number % 3}"]))
            guest.send("GET", "/healthz")
        for _number in range(20):
            assert guest.read().body.count(b"refs/tags/") == 1
            assert guest.read().body == b"ok\n"


def test_http_1_0_gets_the_whole_answer_and_the_end(node: Node) -> None:
    """No chunks for a client that does not know them: the end of the connection is the end of the answer."""
    request = fetch_request(node.tip, *SHALLOW)
    with HttpGuest(node.serve.http_url) as guest:
        guest.send("POST", POST, post_headers(), request, version="1.0")
        said = guest.rest()
    head, _, body = said.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200") and b"chunked" not in head.lower()
    assert body == ask(node.serve, WIDGETS, request)


def test_head_says_what_get_would(node: Node) -> None:
    """The same status and headers, and no body."""
    for target in (INFO, INFO.replace("upload", "receive"), "/healthz", "/nothing"):
        with HttpGuest(node.serve.http_url) as guest:
            got, head = guest.ask("GET", target), guest.ask("HEAD", target)
            assert (head.status, head.headers, head.body) == (got.status, got.headers, b"")
            assert guest.ask("GET", "/healthz").body == b"ok\n"


# Paths


@pytest.mark.parametrize(
    "path",
    [
        "/acme/widgets",
        "/acme/widgets.git",
        "/acme/widgets/",
        "/{host}:{port}/acme/widgets",
        "/{host}:{port}/acme/widgets.git",
        "/{host}/acme/widgets.git/",
        "/%61cme/widgets",
        "/sub/tools",
        "/{host}:{port}/group/sub/tools.git",
    ],
)
def test_a_repository_answers_at_every_form_of_its_path(node: Node, path: str) -> None:
    """OWNER/REPO, `.git`, a slash behind, the upstream's host in front: for fetch and push."""
    path = path.format(host="127.0.0.1", port=node.upstream.port)
    assert remote_refs(node.serve.http_url + path)["HEAD"] == node.tip
    reply = http_ask(f"{node.serve.http_url}{path}/info/refs?service=git-receive-pack")
    assert reply.status == 200 and reply.body[4:].startswith(b"# service=git-receive-pack\n")
    assert http_ask(f"{node.serve.http_url}{path}/git-upload-pack", "POST", post_headers(), LIST).body.endswith(FLUSH)


@pytest.mark.parametrize(
    "path",
    [
        "/acme/nothing",
        "/acme",
        "/acme/../acme/widgets",
        "/acme/%2e%2e/acme/widgets",
        "/../../etc/passwd",
        "//acme/widgets",
        "/acme/widgets.git.git",
        "/acme/widgets/objects",
        "/acme/Widgets",
        "/example.com/acme/widgets",
        "/acme/widgets%00",
        "/acme/widgets%0d%0aX-Evil:%201",
        "/acme/widgets%20",
    ],
)
def test_what_is_not_mirrored_is_not_found(node: Node, path: str) -> None:
    """404 in words, for every service and method, with nothing of the path in the headers."""
    for action, method in (("info/refs?service=git-upload-pack", "GET"), ("info/refs?service=git-receive-pack", "GET")):
        reply = http_ask(f"{node.serve.http_url}{path}/{action}", method)
        assert (reply.status, "location" in reply.headers, "x-evil" in reply.headers) == (404, False, False)
        assert b"not mirrored here" in reply.body or b"nothing here" in reply.body
    for service in ("git-upload-pack", "git-receive-pack"):
        reply = http_ask(f"{node.serve.http_url}{path}/{service}", "POST", post_headers(service), b"0000")
        assert reply.status == 404


@pytest.mark.slow
def test_git_says_not_found_for_what_is_unknown_or_disabled(
    serve_factory: ServeFactory, upstream: HttpUpstream
) -> None:
    """All alike, as on git://."""
    serve = serve_factory(repos=[upstream.url(WIDGETS)], refresh=SETTLED).start()
    serve.wait_for_repo(WIDGETS)
    serve.cli("add-repo", upstream.url(WIDGETS), "--name", "acme/disabled")
    serve.cli("disable", "acme/disabled")
    said = [git_result("ls-remote", f"{serve.http_url}/acme/{name}")[2] for name in ("disabled", "unknown")]
    assert said[0].replace("disabled", "unknown") == said[1]
    assert "not found" in said[1]


# Redirects


@pytest.fixture(scope="module")
def elsewhere(node: Node, generated_bare: Path) -> str:
    """A repository of the same upstream that is not mirrored."""
    if not node.upstream.path("acme/elsewhere").exists():
        node.upstream.add("acme/elsewhere", generated_bare)
    return "acme/elsewhere"


def test_a_fetch_of_what_is_not_mirrored_goes_on_to_its_upstream(node: Node, elsewhere: str, tmp_path: Path) -> None:
    """Under one insteadOf for a whole host, everything else of that host still works."""
    rule = f"url.{node.serve.http_url}/.insteadOf=http://"
    git("-c", rule, "clone", "--quiet", node.upstream.url(elsewhere), str(tmp_path / "clone"))
    git("-c", rule, "clone", "--quiet", "--depth=1", node.upstream.url(WIDGETS), str(tmp_path / "mirrored"))
    assert git("rev-parse", "HEAD", cwd=tmp_path / "clone") == node.tip
    fsck(tmp_path / "clone")


def test_a_redirect_names_the_upstream_exactly(node: Node, elsewhere: str) -> None:
    """307 for both steps of a fetch, with the service, without anything else of the query."""
    host = f"127.0.0.1:{node.upstream.port}"
    base = f"/{host}/{elsewhere}.git"
    reply = http_ask(f"{node.serve.http_url}{base}/info/refs?service=git-upload-pack&evil=%0d%0a")
    assert (reply.status, reply.headers["location"]) == (307, f"http:/{base}/info/refs?service=git-upload-pack")
    reply = http_ask(f"{node.serve.http_url}{base}/git-upload-pack", "POST", post_headers(), LIST)
    assert (reply.status, reply.headers["location"]) == (307, f"http:/{base}/git-upload-pack")
    assert http_ask(f"{node.serve.http_url}{base}/info/refs?service=git-upload-pack", "HEAD").status == 307


def test_a_push_is_never_redirected(node: Node, elsewhere: str) -> None:
    """An agent's push must not leave the node."""
    base = f"{node.serve.http_url}/127.0.0.1:{node.upstream.port}/{elsewhere}"
    for reply in (
        http_ask(f"{base}/info/refs?service=git-receive-pack"),
        http_ask(f"{base}/git-receive-pack", "POST", post_headers("git-receive-pack"), b"0000"),
        http_ask(f"{base}/info/refs?service=git-upload-pack&service=git-receive-pack"),
        http_ask(f"{base}/info/refs"),
        http_ask(f"{base}/objects/info/packs"),
    ):
        assert (reply.status, "location" in reply.headers) == (404, False)
    code, _, said = git_result("push", base, "main:refs/agents/x", cwd=node.mirror)
    assert code == 128 and "not found" in said


@pytest.mark.parametrize(
    "path",
    [
        "/example.com/acme/elsewhere",
        "/127.0.0.1:1/acme/elsewhere",
        "/127.0.0.1.evil/acme/elsewhere",
        "/user@{host}/acme/elsewhere",
        "//{host}/acme/elsewhere",
        "//evil.example/acme/elsewhere",
        "/{host}/elsewhere",
        "/{host}",
        "/{host}/../acme/elsewhere",
        "/{host}/acme/%2e%2e/elsewhere",
        "/{host}%0d%0a/acme/elsewhere",
    ],
)
def test_nobody_is_redirected_anywhere_else(node: Node, path: str) -> None:
    """Not to hosts that no repository has, nor out of the host by tricks."""
    path = path.format(host=f"127.0.0.1:{node.upstream.port}")
    reply = http_ask(f"{node.serve.http_url}{path}/info/refs?service=git-upload-pack")
    assert (reply.status, "location" in reply.headers) == (404, False)


@pytest.mark.parametrize(
    "odd", ["a%0d%0aX-Evil:%201", "a%3Fb%23c", "%2f%2fevil.example", "a%20b", "na%C3%AFve", "a%5cb", "%00"]
)
def test_a_redirect_carries_nothing_that_is_not_a_path(node: Node, odd: str) -> None:
    """Line ends, queries, fragments and backslashes stay escaped within the path of that very upstream."""
    host = f"127.0.0.1:{node.upstream.port}"
    reply = http_ask(f"{node.serve.http_url}/{host}/acme/{odd}/info/refs?service=git-upload-pack")
    assert "x-evil" not in reply.headers
    if reply.status == 307:
        location = reply.headers["location"]
        assert location.startswith(f"http://{host}/acme/")
        tail = location.removeprefix(f"http://{host}/acme/").removesuffix("/info/refs?service=git-upload-pack")
        assert not set(tail) & set("\r\n?#\\ \0") and tail.isascii()
    else:
        assert reply.status == 404


# What is refused


def test_the_dumb_protocol_is_refused(node: Node) -> None:
    """Without a service, or with another one, and never a file of the mirror."""
    for query in ("", "?service=", "?service=git-upload-archive", "?service=../upload-pack"):
        reply = http_ask(f"{node.serve.http_url}/{WIDGETS}/info/refs{query}")
        assert (reply.status, reply.body) == (403, b"only git's smart protocol is served: fetch and push\n")
    for path in ("HEAD", "objects/info/packs", "config", "packed-refs", "git-upload-archive"):
        assert http_ask(f"{node.serve.http_url}/{WIDGETS}/{path}").status == 404


def test_wrong_methods_and_types_are_refused(node: Node) -> None:
    """405 with what is allowed, 415 for a body that is not what git sends."""
    url = node.serve.http_url
    assert http_ask(url + POST).status == 405
    assert http_ask(url + POST).headers["allow"] == "POST"
    assert http_ask(url + INFO, "POST", {}, b"").headers["allow"] == "GET, HEAD"
    assert http_ask(f"{url}/healthz", "DELETE").status == 405
    assert http_ask(f"{url}/healthz", "BREW").status == 405
    for headers in ({}, {"Content-Type": "text/plain"}, post_headers("git-receive-pack")):
        assert http_ask(url + POST, "POST", headers, LIST).status == 415
    assert http_ask(url + POST, "POST", post_headers() | {"Content-Encoding": "br"}, LIST).status == 415


def test_bodies_that_are_no_request_are_refused(node: Node) -> None:
    """400 in words, and no trace of it in the next request."""
    url = node.serve.http_url + POST
    for body in (b"zzzz", LIST[:-4], b"0003", pkt("agent=x") + FLUSH, b"x" * 20_000):
        reply = http_ask(url, "POST", post_headers(), body)
        assert reply.status == 400 and reply.body
    assert http_ask(url, "POST", post_headers(Content_Encoding="gzip"), LIST).status == 400
    assert http_ask(url, "POST", post_headers(Content_Encoding="gzip"), gzip.compress(LIST)[:50]).status == 400
    assert http_ask(url, "POST", post_headers(), FLUSH).body == b"", "a guest that is done"


@pytest.mark.parametrize("version", [0, 2])
def test_a_body_over_the_limit_is_refused(node: Node, version: int) -> None:
    """As many bytes as a request may have, counted after inflating: a bomb of 60 KB is refused like its 60 MB."""
    plain = pkt("command=fetch") + pkt(b"x" * 60_000) * 1000
    url = node.serve.http_url + POST
    for encoding, body in (({}, plain), ({"Content-Encoding": "gzip"}, gzip.compress(plain))):
        with HttpGuest(url) as guest:
            sent = guest.head(
                "POST", POST, post_headers(version=version) | encoding | {"Content-Length": str(len(body))}
            )
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                guest.sock.sendall(sent + body)
            reply = guest.read("POST")
        assert reply.status in (400, 413)
        assert b"too large" in reply.body


@pytest.mark.parametrize(
    "target",
    [
        "/healthz?" + "&".join("abcdefghijklmnopqrstuvwxyz"),
        INFO + "&x=1" * 30,
        "*",
        "http://evil.example/healthz",
        "/%ff%fe",
    ],
)
def test_odd_targets_get_an_answer(node: Node, target: str) -> None:
    """Whatever the target is, there is a status, and the connection goes on."""
    with HttpGuest(node.serve.http_url) as guest:
        reply = guest.ask("GET", target)
        assert reply.status in (200, 400, 404) and reply.body
        if reply.status != 400:
            assert guest.ask("GET", "/healthz").status == 200
    assert "Traceback" not in node.serve.log()


MALFORMED = {
    "no HTTP": b"git-upload-pack /acme/widgets\r\n\r\n",
    "a space too many": b"GET  /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
    "no host": b"GET /healthz HTTP/1.1\r\n\r\n",
    "two lengths": b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    "a bad length": b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
    "a bad header": b"GET /healthz HTTP/1.1\r\nHost: x\r\nbad header: 1\r\n\r\n",
    "a line end alone": b"GET /healthz HTTP/1.1\r\nHost: x\r\nA: b\rC: d\r\n\r\n",
    "a head without end": b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"A: " + b"a" * 70_000,
    "another encoding": b"POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n",
    "a bad chunk": f"POST {POST} HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-git-upload-pack-request\r\n"
    "Transfer-Encoding: chunked\r\n\r\nzz\r\n".encode(),
    "tls": bytes.fromhex("160301020001000001fc0303") + b"\x00" * 500,
}


@pytest.mark.parametrize("said", MALFORMED.values(), ids=MALFORMED.keys())
def test_what_is_no_http_is_answered_and_ended(node: Node, said: bytes) -> None:
    """A status of 4xx or 5xx with words, then the end; the next guest is served."""
    with HttpGuest(node.serve.http_url) as guest:
        guest.sock.sendall(said)
        reply = guest.read()
        assert reply.status in (400, 431, 501) and reply.body
        assert guest.rest() == b""
    assert http_ask(f"{node.serve.http_url}/healthz").status == 200
    assert "Traceback" not in node.serve.log()


# Endings and limits


@pytest.mark.parametrize("ending", ["half-closes", "never half-closes", "leaves at once"])
def test_an_answer_is_whole_however_the_guest_ends_its_side(node: Node, ending: str) -> None:
    """A guest that half-closes after its request gets all of it, and so does one that never does."""
    request = fetch_request(git("rev-parse", "main~3", cwd=node.mirror))
    with HttpGuest(node.serve.http_url) as guest:
        guest.send("POST", POST, post_headers(), request)
        if ending == "half-closes":
            guest.sock.shutdown(socket.SHUT_WR)
        if ending != "leaves at once":
            reply = guest.read("POST")
            assert reply.complete and is_whole_pack(pack_of(reply.body))
    wait_until(lambda: clients_of(node.serve) == 0, message="the connection has ended")


def test_a_failure_of_git_before_the_first_byte_is_a_500(node: Node) -> None:
    """And one after it cuts the answer off: it is never an end."""
    reply = http_ask(node.serve.http_url + POST, "POST", post_headers(), v2_request("from-the-future"))
    assert reply.status == 500
    reply = http_ask(node.serve.http_url + POST, "POST", post_headers(), fetch_request("1" * 40))
    assert reply.status == 200 and not reply.complete and b"not our ref" in reply.body


@pytest.mark.slow
def test_a_full_queue_is_503_with_a_time(serve_factory: ServeFactory, upstream: HttpUpstream) -> None:
    """A guest that finds no place is told when to come again; the next one that does is served."""
    limits: dict[str, Value] = {"max_clients": 1, "queue_timeout": "300ms"}
    serve = serve_factory(repos=[upstream.url(WIDGETS)], refresh=SETTLED, serve=limits).start()
    serve.wait_for_repo(WIDGETS)
    with PushConnection(*serve.git_address, f"/{WIDGETS}"):
        reply = http_ask(serve.http_url + INFO)
        assert (reply.status, reply.headers["retry-after"]) == (503, "1")
        assert b"1 guests are being served" in reply.body
        assert http_ask(f"{serve.http_url}/healthz").status == 200, "whoever watches takes no place"
        code, _, said = git_result("clone", f"{serve.http_url}/{WIDGETS}", "clone", cwd=serve.state.parent)
        assert code == 128 and "503" in said
    wait_until(lambda: http_ask(serve.http_url + INFO).status == 200, message="the place is free")


@pytest.mark.slow
def test_slow_requests_are_cut_off(serve_factory: ServeFactory, upstream: HttpUpstream) -> None:
    """A head that comes byte by byte has request_timeout in all, a body that stops has idle_timeout."""
    limits: dict[str, Value] = {"request_timeout": "2s", "idle_timeout": "3s", "max_clients": 2}
    serve = serve_factory(repos=[upstream.url(WIDGETS)], refresh=SETTLED, serve=limits).start()
    serve.wait_for_repo(WIDGETS)
    start = time.monotonic()
    with HttpGuest(serve.http_url) as dribbling, HttpGuest(serve.http_url) as silent, HttpGuest(serve.http_url) as half:
        half.sock.sendall(half.head("POST", POST, post_headers() | {"Content-Length": "100"}) + LIST[:20])
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            # No head of these is ever whole, however fast they come.
            for byte in half.head("GET", INFO, {}).removesuffix(b"\r\n\r\n") + b"x" * 5000:
                dribbling.sock.sendall(bytes([byte]))
                time.sleep(0.02)
        assert time.monotonic() - start > 0.3
        assert silent.rest() == b""
        assert http_ask(serve.http_url + INFO).status == 200
        said = half.rest()
        assert said == b"" or b" 408 " in said.split(b"\r\n")[0]
    wait_until(lambda: clients_of(serve) == 0, message="all have gone")


def test_http_and_git_share_one_cache(node: Node, tmp_path: Path) -> None:
    """What one port made is a hit on the other, deep paths included."""
    node.serve.clone(tmp_path / "one", TOOLS, "--depth=7")
    wait_kept(node.serve)
    counting = Counting(node.serve)
    url = f"{node.serve.http_url}/127.0.0.1:{node.upstream.port}/{DEEP}"
    git("clone", "--quiet", "--depth=7", url, str(tmp_path / "two"))
    assert counting.since() == {"hits": 1}
    assert contents_of(tmp_path / "one") == contents_of(tmp_path / "two")
