"""Limits: places, turns, deadlines, and the end of `serve` while guests are served."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import WIDGETS, ServeFactory
from tests.serving.conftest import (
    BIG,
    SETTLED,
    assert_log_is_true,
    assert_mirror_is_clean,
    audit,
    clients,
    connect,
    entry_of,
    is_whole_pack,
    make_turn,
    read_all,
    start_fetch,
)
from tests.serving.conftest import Node as AnyNode
from tests.serving.fetch.conftest import metric
from tests.support.gitutil import git, git_result, refs, remote_refs, wait_until
from tests.support.pkt import ZERO, PushConnection, daemon_request, push_bytes, read_pkt, read_pkts
from tests.support.serve import Serve, Value
from tests.support.upstream import HttpUpstream


@pytest.fixture(scope="module")
def bare_upstream(tmp_path_factory: pytest.TempPathFactory, big_bare: Path) -> Iterator[HttpUpstream]:
    """An upstream with a large repository."""
    with HttpUpstream(tmp_path_factory.mktemp("limits")) as upstream:
        upstream.add(BIG, big_bare)
        yield upstream


def limited(serve_factory: ServeFactory, upstream: HttpUpstream, repo: str = WIDGETS, **limits: Value) -> Serve:
    """A running node with `limits` in its `[serve]`."""
    serve = serve_factory(
        repos=[upstream.url(repo)], refresh=SETTLED, serve=limits, workspace={"enabled": False}
    ).start()
    serve.wait_for_repo(repo)
    return serve


def take_place(serve: Serve) -> PushConnection:
    """A guest that occupies a slot: it has requested a push and sends nothing more."""
    return PushConnection(*serve.git_address, f"/{WIDGETS}")


def start_clone(serve: Serve, path: Path) -> subprocess.Popen[bytes]:
    """A clone that runs beside the test."""
    argv = ["git", "clone", "--quiet", f"{serve.git_url}/{WIDGETS}", str(path)]
    return subprocess.Popen(argv, stderr=subprocess.PIPE)


# Places


@pytest.mark.slow
def test_a_guest_past_max_clients_is_served_when_a_place_comes_free(
    serve_factory: ServeFactory, upstream: HttpUpstream, tmp_path: Path
) -> None:
    """A guest that finds no place waits its turn, and notices nothing but the wait."""
    serve = limited(serve_factory, upstream, max_clients=2, queue_timeout="60s")
    first, second = take_place(serve), take_place(serve)
    waiting = [start_clone(serve, tmp_path / f"clone{number}") for number in range(3)]
    wait_until(lambda: clients(serve) == 5, message="all five are connected")
    assert [each.poll() for each in waiting] == [None] * 3
    assert not list(tmp_path.glob("clone*/.git/objects/pack/*.pack"))
    first.sock.close()
    for each in waiting:
        assert (each.communicate(timeout=60)[1], each.returncode) == (b"", 0)
    second.sock.close()


@pytest.mark.slow
def test_a_guest_whose_turn_does_not_come_gets_a_clear_error(
    serve_factory: ServeFactory, upstream: HttpUpstream, tmp_path: Path
) -> None:
    """After queue_timeout: words that git shows, for fetch and push, and never a reset."""
    serve = limited(serve_factory, upstream, max_clients=1, queue_timeout="300ms")
    expected = "gitmirror: 1 guests are being served and no slot became free in 0.3s; try again"
    with take_place(serve) as holder:
        for version in (0, 1, 2):
            code, _, said = git_result(
                "-c", f"protocol.version={version}", "clone", f"{serve.git_url}/{WIDGETS}", str(tmp_path / "clone")
            )
            assert code == 128
            assert f"fatal: remote error: {expected}" in said
        code, _, said = git_result(
            "push", f"{serve.git_url}/{WIDGETS}", "main:refs/agents/s1", cwd=serve.mirror(WIDGETS)
        )
        assert code == 128
        assert expected in said
        with daemon_request(*serve.git_address, "git-upload-pack", f"/{WIDGETS}") as sock:
            assert read_pkts(sock) == [f"ERR {expected}".encode()]
            assert read_all(sock) == b""
        holder.sock.close()
    wait_until(lambda: clients(serve) == 0, message="the place is free")
    assert remote_refs(f"{serve.git_url}/{WIDGETS}")


@pytest.mark.slow
def test_connections_that_say_nothing_take_no_place(
    serve_factory: ServeFactory, upstream: HttpUpstream, tmp_path: Path
) -> None:
    """Forty slow or silent connections take no slot, so other guests are served."""
    serve = limited(serve_factory, upstream, max_clients=2, queue_timeout="5s", request_timeout="60s")
    with contextlib.ExitStack() as stack:
        for number in range(40):
            stack.enter_context(connect(serve, b"003agit-upload-pack /acme/wid"[: number % 30]))
        wait_until(lambda: clients(serve) == 40, message="all are connected")
        serve.clone(tmp_path / "clone", WIDGETS)


@pytest.mark.slow
def test_connections_past_all_bounds_are_told(serve_factory: ServeFactory, upstream: HttpUpstream) -> None:
    """Connections are bounded too, four times the places and 64 more; past that there is an error, not a hang.

    None of them is idle, because such a one gives way to the next after two seconds.
    """
    serve = limited(serve_factory, upstream, max_clients=1, request_timeout="60s", queue_timeout="10m")
    with contextlib.ExitStack() as stack:
        held: list[contextlib.AbstractContextManager[object]] = [take_place(serve)]
        held += [daemon_request(*serve.git_address, "git-upload-pack", f"/{WIDGETS}") for _ in range(67)]
        for each in held:
            stack.enter_context(each)
        wait_until(lambda: metric(serve, "gitmirror_queue") == 67, message="all but one wait for a place")
        with connect(serve) as sock:
            assert read_pkt(sock) == b"ERR gitmirror: too many connections; try again later"
    wait_until(lambda: clients(serve) == 0, message="they have gone")
    assert remote_refs(f"{serve.git_url}/{WIDGETS}")


# Deadlines


@pytest.mark.slow
def test_a_request_that_does_not_come_is_not_waited_for(serve_factory: ServeFactory, upstream: HttpUpstream) -> None:
    """request_timeout holds for the whole first packet: a byte now and then does not put it off."""
    serve = limited(serve_factory, upstream, request_timeout="500ms")
    expected = b"ERR gitmirror: no request arrived within 0.5s"
    start = time.monotonic()
    with connect(serve) as silent, connect(serve, b"003agit-up") as half, connect(serve) as dribbling:
        dribbling.settimeout(0.1)
        answer: bytes | None = None
        for byte in b"003agit-upload-pack /acme/widgets":
            with contextlib.suppress(OSError):
                dribbling.sendall(bytes([byte]))
            with contextlib.suppress(TimeoutError):
                answer = read_pkt(dribbling)
                break
        assert answer == expected
        assert time.monotonic() - start > 0.4
        assert [read_pkt(silent), read_pkt(half)] == [expected, expected]
        assert [read_all(silent), read_all(half)] == [b"", b""]


@pytest.mark.slow
@pytest.mark.parametrize("guest", ["v0 fetch", "v2 fetch", "push"])
def test_an_idle_guest_is_cut_off(serve_factory: ServeFactory, upstream: HttpUpstream, guest: str) -> None:
    """idle_timeout ends a connection on which nothing moves, and its child, and gives its place back."""
    serve = limited(serve_factory, upstream, idle_timeout="3s", max_clients=1)
    service = "git-receive-pack" if guest == "push" else "git-upload-pack"
    extra = ["version=2"] if guest == "v2 fetch" else []
    start = time.monotonic()
    with daemon_request(*serve.git_address, service, f"/{WIDGETS}", extra, timeout=60) as sock:
        read_pkts(sock)
        with contextlib.suppress(ConnectionResetError):
            read_all(sock)
        assert time.monotonic() - start > 0.5
    wait_until(lambda: clients(serve) == 0, message="its place is free")
    wait_until(lambda: serve.processes() == [serve.pid], message="its child is gone")


@pytest.mark.slow
@pytest.mark.parametrize("version", [0, 2])
def test_a_guest_that_does_not_read_is_cut_off(
    serve_factory: ServeFactory, bare_upstream: HttpUpstream, version: int
) -> None:
    """A guest that requests 24 MB and reads nothing loses its slot after idle_timeout."""
    serve = limited(serve_factory, bare_upstream, BIG, idle_timeout="3s", max_clients=1)
    received = 0
    with start_fetch(serve, BIG, version=version) as sock:
        wait_until(lambda: clients(serve) == 0, timeout=60, message="it is cut off")
        with contextlib.suppress(ConnectionResetError):
            while part := sock.recv(2**20):
                received += len(part)
    assert received < 24 * 2**20, "the sockets hold all of it"
    wait_until(lambda: serve.processes() == [serve.pid], message="its child is gone")


@pytest.mark.slow
def test_no_connection_outlives_total_timeout(serve_factory: ServeFactory, bare_upstream: HttpUpstream) -> None:
    """A guest that reads a little again and again is never idle, and ends all the same."""
    serve = limited(serve_factory, bare_upstream, BIG, total_timeout="5s", idle_timeout="10m")
    start = time.monotonic()
    with start_fetch(serve, BIG) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        wait_until(lambda: clients(serve) == 0 or not sock.recv(1024), timeout=60, message="it is cut off")
    assert time.monotonic() - start > 0.8
    wait_until(lambda: serve.processes() == [serve.pid], message="its child is gone")


@pytest.mark.slow
def test_an_idle_push_is_ended_and_logged(serve_factory: ServeFactory, upstream: HttpUpstream) -> None:
    """A guest that stops in the middle of its pack is ended; the log says that the ref did not move."""
    serve = limited(serve_factory, upstream, idle_timeout="3s")
    turn = make_turn(serve.mirror(WIDGETS), "half of it", size=100_000)
    data = push_bytes([(ZERO, turn.commit, "refs/agents/half")], turn.pack)
    with take_place(serve) as guest:
        guest.send(data[:50_000])
        entries = assert_log_is_true(AnyNode(serve, upstream))
    assert [(each["verdict"], each["outcome"]) for each in entries] == [("accepted", "failed")]
    assert_mirror_is_clean(serve.mirror(WIDGETS))
    assert "refs/agents/half" not in refs(serve.mirror(WIDGETS))


# The end


def refuses(serve: Serve) -> bool:
    """Whether nobody listens any more."""
    # It is reset if it connected just before the listening socket was closed, and was never accepted.
    with contextlib.suppress(ConnectionResetError):
        try:
            socket.create_connection(serve.git_address, timeout=60).close()
        except ConnectionRefusedError:
            return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize("version", [0, 2])
def test_sigterm_lets_a_running_clone_finish(
    serve_factory: ServeFactory, bare_upstream: HttpUpstream, version: int
) -> None:
    """After SIGTERM no new guest is accepted, running responses are sent completely, and then `serve` exits 0."""
    serve = limited(serve_factory, bare_upstream, BIG)
    with start_fetch(serve, BIG, version=version) as sock:
        head = sock.recv(16)
        serve.signal(signal.SIGTERM)
        wait_until(lambda: refuses(serve), message="nobody new is accepted")
        assert serve.running
        answer = head + read_answer(sock, version)
    assert is_whole_pack(answer) if version == 0 else answer.endswith(b"0000")
    assert serve.wait() == 0
    wait_until(lambda: serve.processes() == [], message="no process is left")


@pytest.mark.slow
def test_sigterm_lets_a_running_push_finish(serve_factory: ServeFactory, upstream: HttpUpstream) -> None:
    """A push in progress at SIGTERM is applied, reported to the guest, and logged."""
    serve = limited(serve_factory, upstream)
    turn = make_turn(serve.mirror(WIDGETS), "before the end", size=300_000)
    data = push_bytes([(ZERO, turn.commit, "refs/agents/late")], turn.pack)
    with take_place(serve) as guest:
        guest.send(data[:100_000])
        wait_until(lambda: audit(serve), message="the attempt is logged")
        serve.signal(signal.SIGTERM)
        wait_until(lambda: refuses(serve), message="nobody new is accepted")
        guest.send(data[100_000:])
        assert guest.read_report().accepted
    assert serve.wait() == 0
    assert entry_of(serve, "refs/agents/late")["outcome"] == "applied"
    assert git("rev-parse", "refs/agents/late", cwd=serve.mirror(WIDGETS)) == turn.commit


@pytest.mark.slow
def test_sigterm_ends_what_does_not_finish_in_time(serve_factory: ServeFactory, bare_upstream: HttpUpstream) -> None:
    """drain_timeout ends a clone that nobody reads, and `serve` still exits 0 with no process left."""
    serve = limited(serve_factory, bare_upstream, BIG, drain_timeout="500ms")
    with start_fetch(serve, BIG):
        start = time.monotonic()
        assert serve.terminate(timeout=60) == 0
    assert time.monotonic() - start > 0.4
    wait_until(lambda: serve.processes() == [], message="no process is left")


@pytest.mark.slow
def test_sigterm_waits_for_nobody_who_asks_for_nothing(serve_factory: ServeFactory, upstream: HttpUpstream) -> None:
    """Connections that are kept open without a request, or between two, keep no restart waiting."""
    serve = limited(serve_factory, upstream, drain_timeout="5m", idle_timeout="5m", request_timeout="5m")
    git_port, http_port = (int(url.rpartition(":")[2]) for url in (serve.git_url, serve.http_url))
    with contextlib.ExitStack() as stack:
        for port in (git_port, http_port):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        kept = stack.enter_context(socket.create_connection(("127.0.0.1", http_port)))
        kept.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert kept.recv(15) == b"HTTP/1.1 200 OK"
        listed = daemon_request("127.0.0.1", git_port, "git-upload-pack", f"/{WIDGETS}", ["version=2"])
        stack.enter_context(listed)
        assert listed.recv(4) == b"000e"
        assert serve.terminate(timeout=60) == 0


@pytest.mark.slow
def test_a_push_that_is_ended_at_the_end_has_an_outcome(serve_factory: ServeFactory, upstream: HttpUpstream) -> None:
    """A push that drain_timeout cuts off is in the log with its outcome before `serve` ends."""
    serve = limited(serve_factory, upstream, drain_timeout="300ms")
    turn = make_turn(serve.mirror(WIDGETS), "cut at the end", size=300_000)
    data = push_bytes([(ZERO, turn.commit, "refs/agents/cut")], turn.pack)
    with take_place(serve) as guest:
        guest.send(data[:100_000])
        wait_until(lambda: audit(serve), message="the attempt is logged")
        assert serve.terminate(timeout=60) == 0
    assert entry_of(serve, "refs/agents/cut")["outcome"] == "failed"
    assert "refs/agents/cut" not in refs(serve.mirror(WIDGETS))
    assert_mirror_is_clean(serve.mirror(WIDGETS))


def read_answer(sock: socket.socket, version: int) -> bytes:
    """The rest of an answer: up to the end of the stream, or in v2 up to the last flush."""
    data = bytearray()
    while part := sock.recv(65536):
        data += part
        if version == 2 and data.endswith(b"0000"):
            break
    return bytes(data)
