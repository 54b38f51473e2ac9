"""The listeners of a running `serve`, fuzzed over sockets while healthy guests are served."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import hmac
import re
import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.core.layout import Layout
from tests.conftest import WIDGETS
from tests.fuzz import grammar
from tests.fuzz.budget import Budget
from tests.fuzz.guests import Besieged, address_of, say
from tests.fuzz.mutation import cut, mutations
from tests.serving.conftest import SETTLED, Node, assert_log_is_true, assert_mirror_is_clean
from tests.serving.fetch.wire import post_headers
from tests.support.pkt import DELIM, FLUSH, pkt
from tests.support.serve import Serve
from tests.support.upstream import HttpUpstream
from tests.support.watchdog import Watchdog

SECRET = b"a secret of at least sixteen bytes"

GIT, HTTP, ADMIN, HOOKS, CONTROL = map(Budget.of, (60, 120, 60, 60, 80))


@pytest.fixture(scope="module")
def besieged(tmp_path_factory: pytest.TempPathFactory, generated_bare: Path) -> Iterator[Besieged]:
    """A node that all attacks of this module go to, one after the other."""
    base = tmp_path_factory.mktemp("fuzz")
    for name in ("secret", "token"):
        (base / name).write_bytes(SECRET)
        (base / name).chmod(0o600)
    watchdog = Watchdog(base / "watchdog")
    refresh = SETTLED | {"webhook_secret_file": str(base / "secret"), "token_file": str(base / "token")}
    with HttpUpstream(base / "upstream") as upstream:
        upstream.add(WIDGETS, generated_bare)
        serve = Serve(base / "state", repos=[upstream.url(WIDGETS)], refresh=refresh, env=watchdog.env)
        with serve.start():
            serve.wait_for_repo(WIDGETS)
            yield Besieged(Node(serve, upstream), watchdog)


def test_git_port(besieged: Besieged) -> None:
    """The first packet, and behind a good one v2, v0 and pushes."""
    node, address = besieged.node, besieged.node.serve.git_address
    tip = node.tip.encode()
    whole = grammar.FIRST_PACKETS.map(pkt)
    conversations = st.one_of(
        whole,
        grammar.v2(tip).map(lambda said: pkt(f"git-upload-pack /{WIDGETS}\0host=h\0\0version=2\0") + said),
        grammar.v0(tip).map(lambda said: pkt(f"git-upload-pack /{WIDGETS}\0host=h\0") + said),
        grammar.pushes(tip).map(lambda said: pkt(f"git-receive-pack /{WIDGETS}\0host=h\0") + said),
    )

    @GIT.settings
    @given(conversations.map(grammar.Said), grammar.SEEDS)
    def run(said: bytes, seed: int) -> None:
        for data in mutations(said, seed, GIT.variants):
            say(address, cut(data, seed))

    with besieged.attacked():
        run()
    assert_log_is_true(node)
    assert_mirror_is_clean(node.mirror)


def test_http_port(besieged: Besieged) -> None:
    """Every route of guests."""
    node, address = besieged.node, address_of(besieged.node.serve.http_url)
    tip = node.tip.encode()
    bodies = st.one_of(grammar.v2(tip), grammar.v0(tip), grammar.pushes(tip), st.binary(max_size=64))

    @HTTP.settings
    @given(grammar.http(bodies), grammar.SEEDS)
    def run(said: bytes, seed: int) -> None:
        for data in mutations(said, seed, HTTP.variants):
            answer = say(address, cut(data, seed))
            assert not answer or answer.startswith(b"HTTP/1.1 "), answer[:200]

    with besieged.attacked():
        run()
    assert_log_is_true(node)
    assert_mirror_is_clean(node.mirror)


def test_admin_port(besieged: Besieged) -> None:
    """Every route of operators, with bodies whose signature is mostly wrong."""
    address = address_of(besieged.node.serve.admin_url)

    @ADMIN.settings
    @given(grammar.http(grammar.WEBHOOKS), grammar.SEEDS)
    def run(said: bytes, seed: int) -> None:
        for data in mutations(said, seed, ADMIN.variants):
            answer = say(address, cut(data, seed))
            assert not answer or answer.startswith(b"HTTP/1.1 "), answer[:200]

    with besieged.attacked():
        run()


def test_signed_webhooks(besieged: Besieged) -> None:
    """What a body may say whose signature holds."""
    address = address_of(besieged.node.serve.admin_url)

    @HOOKS.settings
    @given(grammar.WEBHOOKS, grammar.SEEDS, st.sampled_from(["push", "create", "delete", "ping", "\xff"]))
    def run(document: bytes, seed: int, event: str) -> None:
        for body in mutations(document, seed, HOOKS.variants):
            head = (
                f"POST /hooks/github HTTP/1.1\r\nHost: h\r\nContent-Length: {len(body)}\r\nX-GitHub-Event: {event}\r\n"
                f"X-Hub-Signature-256: sha256={hmac.new(SECRET, body, hashlib.sha256).hexdigest()}\r\n\r\n"
            )
            answer = say(address, cut(head.encode("latin-1") + body, seed))
            assert answer[9:12] in (b"200", b"202", b"400", b"404"), answer[:300]

    with besieged.attacked():
        run()


@pytest.mark.slow
def test_control_socket(besieged: Besieged) -> None:
    """Every route with arguments of every kind. They are not mutated, or they would name hosts that are others'."""
    control = Layout(besieged.node.serve.state).control_socket

    @CONTROL.settings
    @given(st.lists(grammar.api_requests(ends=True), min_size=CONTROL.variants, max_size=CONTROL.variants))
    def run(said: list[bytes]) -> None:
        for data in said:
            answer = say(control, cut(data, len(data)), ends=False)
            assert answer.startswith(b"HTTP/1.1 "), (data, answer[:200])
            assert not re.search(rb"HTTP/1\.1 50[0-2]", answer), (data, answer[:1000])

    with besieged.attacked():
        run()
    assert [repo["name"] for repo in besieged.node.serve.cli_json("repos") if repo["name"] == WIDGETS]
    assert besieged.node.mirror.exists()


# What is large


def head(service: str, *headers: str) -> bytes:
    """Of a POST."""
    lines = [f"{name}: {value}" for name, value in post_headers(service).items()]
    return "\r\n".join([f"POST /{WIDGETS}/{service} HTTP/1.1", "Host: h", *lines, *headers, "", ""]).encode()


UPLOAD = pkt(f"git-upload-pack /{WIDGETS}\0host=h\0")
UPLOAD_V2 = pkt(f"git-upload-pack /{WIDGETS}\0host=h\0\0version=2\0")
RECEIVE = pkt(f"git-receive-pack /{WIDGETS}\0host=h\0")
V2_HEAD = pkt("command=fetch") + DELIM
CODED = head("git-upload-pack", "Content-Encoding: gzip", "Transfer-Encoding: chunked")

ENDLESS = {
    "zeros": (b"", b"\0" * 65536),
    "flushes": (UPLOAD_V2, FLUSH * 16384),
    "delimiters": (UPLOAD_V2 + V2_HEAD, DELIM * 16384),
    "empty packets": (UPLOAD_V2 + V2_HEAD, b"0004" * 16384),
    "capabilities": (UPLOAD_V2, pkt("agent=x") * 5000),
    "prefixes": (UPLOAD_V2 + pkt("command=ls-refs") + DELIM, pkt("ref-prefix x") * 4000),
    "requests": (UPLOAD_V2, (pkt("command=ls-refs") + DELIM + pkt("ref-prefix x") + FLUSH) * 1000),
    "wants of v0": (UPLOAD, pkt("want " + "1" * 40) * 1300),
    "empty commands": (RECEIVE, b"0004" * 16384),
    "shallow lines": (RECEIVE, pkt("shallow " + "1" * 40) * 1200),
    "commands": (RECEIVE, pkt(f"{'0' * 40} {'1' * 40} refs/agents/x") * 600),
    "a head": (b"GET / HTTP/1.1\r\nHost: h\r\nX: ", b"x" * 65536),
    "headers": (b"GET / HTTP/1.1\r\nHost: h\r\n", b"a:\r\n" * 16384),
    "heads": (b"", b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n" * 1700),
    "a chunk's extension": (head("git-upload-pack", "Transfer-Encoding: chunked") + b"1;", b"x" * 65536),
    "chunks of one byte": (head("git-receive-pack", "Transfer-Encoding: chunked"), b"1\r\n0\r\n" * 10000),
    "gzip and more": (CODED + b"14\r\n" + gzip.compress(b"") + b"\r\n", b"10000\r\n" + b"x" * 65536 + b"\r\n"),
    "an empty gzip": (
        CODED + b"a\r\n" + gzip.compress(b"")[:10] + b"\r\n",
        b"a000\r\n" + b"\0\0\0\xff\xff" * 8192 + b"\r\n",
    ),
    "a length and chunks": (
        head("git-upload-pack", "Content-Encoding: gzip", "Content-Length: 5000", "Transfer-Encoding: chunked"),
        b"10000\r\n" + b"x" * 65536 + b"\r\n",
    ),
    "brackets": (b"", b"[" * 65536),
}
MOST_SAID = 48 * 2**20
LONGEST_SAID = 1.0
"""Seconds."""
MOST_HELD = 224 * 1024
"""KiB that `serve` may take while a guest says so much: its budget for requests (128 MiB), and what parses them."""


@pytest.mark.slow
def test_what_has_no_end(besieged: Besieged) -> None:
    """As much of each as `serve` takes, up to 48 MB: memory is bounded while it comes, and others are served."""
    serve = besieged.node.serve
    besieged.memory()
    with besieged.attacked():
        for name, (first, more) in ENDLESS.items():
            Path(f"/proc/{serve.pid}/clear_refs").write_text("5")
            before = besieged.memory()
            address = address_of(serve.http_url) if b" HTTP/" in first + more else serve.git_address
            if name == "brackets":
                continue
            endless(address, first, more)
            assert besieged.memory("VmHWM") - before < MOST_HELD, name
        with contextlib.suppress(ConnectionError):
            say(Layout(serve.state).control_socket, [ENDLESS["brackets"][1]] * 500)


def endless(address: tuple[str, int], first: bytes, more: bytes) -> None:
    """Says `more` until it is cut off or answered with an end, or MOST_SAID bytes or LONGEST_SAID are over."""
    until = time.monotonic() + LONGEST_SAID
    with socket.create_connection(address, timeout=60) as sock:
        said = 0
        with contextlib.suppress(OSError):
            sock.sendall(first)
            while said < MOST_SAID and time.monotonic() < until:
                sock.sendall(more)
                said += len(more)
                while select.select([sock], [], [], 0)[0]:
                    if not sock.recv(1 << 20):
                        return
