"""Slow and hostile guests: their cost is bounded, and nobody else notices them."""

from __future__ import annotations

import contextlib
import gzip
import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import WIDGETS, ServeFactory
from tests.serving.conftest import BIG, SETTLED, Node, is_whole_pack
from tests.serving.fetch.conftest import Counting, GatedFactory, clients_of, wait_kept, wait_warm
from tests.serving.fetch.wire import (
    HttpGuest,
    ask,
    fetch_request,
    http_ask,
    open_v2,
    pack_of,
    post_headers,
    read_answer,
    v2_request,
)
from tests.support.generate import add_commit
from tests.support.gitutil import git, remote_refs, wait_until
from tests.support.pkt import DELIM, FLUSH, daemon_request, pkt, read_pkts
from tests.support.processes import cpu_seconds
from tests.support.serve import Serve, Value
from tests.support.upstream import HttpUpstream

POST = f"/{BIG}/git-upload-pack"
LARGE = 8 * 2**20
"""Bytes that no compression makes less."""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, generated_bare: Path) -> Iterator[Node]:
    """A node with a repository that does not fit in any socket's buffers, and a small one."""
    base = tmp_path_factory.mktemp("hostile")
    with HttpUpstream(base / "upstream") as upstream:
        add_commit(upstream.add(BIG, generated_bare), "main", {"noise.bin": random.Random(7).randbytes(LARGE)})
        upstream.add(WIDGETS, generated_bare)
        with Serve(
            base / "state",
            repos=[upstream.url(BIG), upstream.url(WIDGETS)],
            refresh=SETTLED,
            workspace={"enabled": False},
        ).start() as serve:
            serve.wait_for_repo(BIG)
            serve.wait_for_repo(WIDGETS)
            wait_warm(serve, BIG)
            wait_warm(serve)
            yield Node(serve, upstream)


def resident(serve: Serve) -> int:
    """Bytes of memory that the process has now."""
    lines = Path(f"/proc/{serve.pid}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def descriptors(serve: Serve) -> int:
    """How many files it has open."""
    return len(os.listdir(f"/proc/{serve.pid}/fd"))


class Watch:
    """What a burst of hostile guests may not leave behind. A context manager.

    When it ends, guests are served on both ports, every connection and descriptor is given back, no child is left, the
    memory is where it was but for `spare` bytes, and nothing was logged as a failure of the appliance's own.
    """

    def __init__(self, serve: Serve, *, spare: int = 40 * 2**20) -> None:
        self._serve = serve
        self._spare = spare

    def __enter__(self) -> Watch:
        self._served()
        self._descriptors = descriptors(self._serve)
        self._resident = resident(self._serve)
        self._log = len(self._serve.log())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None:
            return
        self._served()
        wait_until(lambda: clients_of(self._serve) == 0, timeout=60, message="all connections have ended")
        wait_until(lambda: descriptors(self._serve) <= self._descriptors, message="all descriptors are given back")
        wait_until(lambda: self._serve.processes() == [self._serve.pid], message="no child is left")
        assert resident(self._serve) - self._resident < self._spare
        said = self._serve.log()[self._log :]
        assert "Traceback" not in said, said

    def _served(self) -> None:
        assert remote_refs(f"{self._serve.git_url}/{WIDGETS}")
        assert remote_refs(f"{self._serve.http_url}/{WIDGETS}")
        wait_until(lambda: clients_of(self._serve) == 0, timeout=60, message="nobody is connected")


def slow_socket(address: tuple[str, int]) -> socket.socket:
    """A connection whose other end is soon full."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(60)
    sock.connect(address)
    return sock


def say_slowly(serve: Serve, request: bytes, count: int, stack: contextlib.ExitStack) -> list[socket.socket]:
    """That many guests, on both ports in turn, that send this request and read only a little of the response."""
    host, port = serve.http_url.removeprefix("http://").split(":")
    first = pkt(f"git-upload-pack /{BIG}\0host=x\0\0version=2\0")
    lines = [f"POST {POST} HTTP/1.1", f"Host: {host}", f"Content-Length: {len(request)}"]
    lines += [f"{name}: {value}" for name, value in post_headers().items()]
    head = "\r\n".join([*lines, "", ""]).encode()
    socks = []
    for number in range(count):
        sock = stack.enter_context(slow_socket((host, int(port)) if number % 2 else serve.git_address))
        sock.sendall((head if number % 2 else first) + request)
        socks.append(sock)
    return socks


class Trickle:
    """Reads 1 KiB a second from each of many guests. A context manager."""

    def __init__(self, socks: list[socket.socket]) -> None:
        self._socks = socks
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._read)
        self.least = 0

    def __enter__(self) -> Trickle:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(60)

    def _read(self) -> None:
        got = [0] * len(self._socks)
        while not self._done.is_set():
            start = time.monotonic()
            for number, sock in enumerate(self._socks):
                got[number] += len(sock.recv(1024))
            self.least = min(got)
            self._done.wait(max(0.0, 1 - (time.monotonic() - start)))


@pytest.mark.slow
def test_two_hundred_slow_guests_cost_two_handles_each_and_no_memory(node: Node, tmp_path: Path) -> None:
    """1 KiB/s of a large answer each, on both ports: under 50 MB in all, and others are served as ever."""
    serve, count = node.serve, 200
    request = fetch_request(git("rev-parse", "main", cwd=serve.mirror(BIG)), "ofs-delta")
    assert len(ask(serve, BIG, request)) > LARGE
    wait_kept(serve)
    counting = Counting(serve)
    with Watch(serve), contextlib.ExitStack() as stack:
        before, handles = resident(serve), descriptors(serve)
        with Trickle(say_slowly(serve, request, count, stack)) as trickle:
            wait_until(lambda: counting.since() == {"hits": count}, timeout=60, message="all are being served")
            wait_until(lambda: trickle.least >= 2048, timeout=60, message="all get their trickle")
            assert resident(serve) - before < 50 * 2**20
            assert descriptors(serve) - handles <= 2 * count + 10
            # Others: a hit, and one that needs an upload-pack of its own.
            serve.clone(tmp_path / "hit", WIDGETS, "--depth=1")
            serve.clone(tmp_path / "miss", WIDGETS, "--depth=4", http=True)
            assert is_whole_pack(pack_of(ask(serve, BIG, request))), "the very same answer, at full speed"
            assert resident(serve) - before < 50 * 2**20


@pytest.mark.slow
def test_slow_guests_with_answers_of_their_own_keep_no_upload_pack_from_others(node: Node, tmp_path: Path) -> None:
    """An uncached response goes at its guest's pace. More of them than there are slots block nobody."""
    serve = node.serve
    tip = git("rev-parse", "main", cwd=serve.mirror(BIG))
    request = v2_request("fetch", ["ofs-delta", f"want {tip}", "have " + "1" * 40, "done"])
    counting = Counting(serve)
    with Watch(serve), contextlib.ExitStack() as stack:
        say_slowly(serve, request, 40, stack)
        wait_until(lambda: counting.since() == {"direct": 40}, timeout=60, message="all are being served")
        serve.clone(tmp_path / "miss", WIDGETS, "--depth=6")
        git("-c", "protocol.version=0", "ls-remote", f"{serve.http_url}/{WIDGETS}")


def test_a_guest_that_stops_reading_holds_up_nobody_who_joined(node: Node) -> None:
    """Of three that share an answer, one reads nothing: the others have it in full."""
    serve = node.serve
    request = fetch_request(git("rev-parse", "main", cwd=serve.mirror(BIG)), "ofs-delta", "include-tag", "deepen 2000")
    with Watch(serve), contextlib.ExitStack() as stack:
        say_slowly(serve, request, 1, stack)
        assert is_whole_pack(pack_of(ask(serve, BIG, request)))
        assert is_whole_pack(pack_of(ask(serve, BIG, request)))


# Garbage


def guests_that_say(serve: Serve, sayings: list[bytes], *, http: bool) -> None:
    """Each on a connection of its own, all at once; each is answered or cut off, and read to its end."""
    url = serve.http_url if http else serve.git_url
    host, port = url.rpartition("/")[2].split(":")

    def say(saying: bytes) -> None:
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=60) as sock:
            sock.sendall(saying)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65536):
                pass

    threads = [threading.Thread(target=say, args=(saying,)) for saying in sayings]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a guest hangs"


def random_sayings(start: bytes, seed: int, count: int) -> list[bytes]:
    """`start` and something random behind it."""
    chance = random.Random(seed)
    return [start + chance.randbytes(chance.choice((1, 7, 100, 5000, 100_000))) for _ in range(count)]


FIRST = pkt(f"git-upload-pack /{WIDGETS}\0host=x\0\0version=2\0")
PUSH = pkt(f"git-receive-pack /{WIDGETS}\0host=x\0")
HEAD = (
    f"POST /{WIDGETS}/git-upload-pack HTTP/1.1\r\nHost: x\r\nGit-Protocol: version=2\r\n"
    "Content-Type: application/x-git-upload-pack-request\r\n"
).encode()


@pytest.mark.parametrize("port", ["git", "http"])
def test_random_bytes_are_answered_or_cut_off(node: Node, port: str) -> None:
    """From the first byte, within a request, within a body, on both ports, sixty at once."""
    starts: tuple[bytes, ...]
    if port == "git":
        starts = (b"", b"0032git-upload-pack ", FIRST, FIRST + pkt("command=fetch") + DELIM, PUSH)
    else:
        starts = (
            b"",
            b"GET / HTTP/1.1\r\n",
            HEAD + b"Transfer-Encoding: chunked\r\n\r\n",
            HEAD + b"Content-Length: 9999\r\n\r\n",
        )
    with Watch(node.serve):
        sayings = [each for seed, start in enumerate(starts) for each in random_sayings(start, seed, 60 // len(starts))]
        guests_that_say(node.serve, sayings, http=port == "http")


def test_lengths_that_lie_are_refused(node: Node) -> None:
    """The largest lengths there are, with nothing, little or much behind them."""
    sayings = [
        start + length + b"x" * size
        for start in (b"", FIRST, PUSH)
        for length in (b"ffff", b"fff0", b"0004")
        for size in (0, 70_000)
    ]
    sayings += [FIRST + b"0004" * 500_000, FIRST + pkt("command=fetch") + b"0005x" * 300_000, PUSH + b"0005x" * 300_000]
    lengths = (b"Content-Length: 99999999999999999999\r\n\r\n", b"Content-Length: 33554433\r\n\r\n" + b"x" * 100_000)
    with Watch(node.serve, spare=150 * 2**20):
        guests_that_say(node.serve, sayings, http=False)
        guests_that_say(node.serve, [HEAD + length for length in lengths], http=True)


def test_ten_thousand_wants_of_absent_objects_are_an_error(node: Node) -> None:
    """On both ports, several at once: git's error, nothing kept, no memory kept."""
    wants = [random.Random(number).randbytes(20).hex() for number in range(10_000)]
    request = fetch_request(wants)
    with Watch(node.serve, spare=80 * 2**20):
        for _ in range(3):
            assert b"not our ref" in ask(node.serve, WIDGETS, request)
            reply = http_ask(f"{node.serve.http_url}/{WIDGETS}/git-upload-pack", "POST", post_headers(), request)
            assert b"not our ref" in reply.body
        guests_that_say(node.serve, [FIRST + request] * 20, http=False)
        body = gzip.compress(request)
        head = HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body)
        guests_that_say(node.serve, [head + body] * 20, http=True)


@pytest.mark.slow
def test_guests_that_dribble_hold_up_nobody(serve_factory: ServeFactory, upstream: HttpUpstream) -> None:
    """A hundred heads and requests that never become whole, and connections that ask for nothing: others are served.

    With fewer places than there are of them.
    """
    limits: dict[str, Value] = {"max_clients": 8, "queue_timeout": "5s", "request_timeout": "10m"}
    serve = serve_factory(repos=[upstream.url(WIDGETS)], refresh=SETTLED, serve=limits).start()
    serve.wait_for_repo(WIDGETS)
    host, port = serve.http_url.removeprefix("http://").split(":")
    with Watch(serve), contextlib.ExitStack() as stack:
        socks = []
        for number in range(15):
            socks.append(stack.enter_context(socket.create_connection((host, int(port)))))
            socks[-1].sendall(HEAD[: 10 + number])
            socks.append(stack.enter_context(socket.create_connection(serve.git_address)))
            socks[-1].sendall(FIRST[: 5 + number])
            socks.append(stack.enter_context(open_v2(serve, WIDGETS)))
        wait_until(lambda: clients_of(serve) == 45, message="all are connected")
        for _ in range(3):
            for sock in socks:
                with contextlib.suppress(OSError):
                    sock.sendall(b"0")
            # Who finds no place is told so after `queue_timeout`, and the dribbling guests hold on for longer.
            assert remote_refs(f"{serve.git_url}/{WIDGETS}")
            assert remote_refs(f"{serve.http_url}/{WIDGETS}")


def test_a_guest_that_never_pauses_leaves_the_others_their_turn(node: Node) -> None:
    """One guest sends requests without end and another an endless request, while others send small ones."""
    serve = node.serve
    listing = v2_request("ls-refs", ["peel", "symrefs"])
    done = threading.Event()

    def flood(sock: socket.socket, data: bytes) -> None:
        with contextlib.suppress(OSError):
            while not done.is_set():
                sock.sendall(data)

    def drain(sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while not done.is_set() and sock.recv(1 << 20):
                pass

    with Watch(serve, spare=150 * 2**20), contextlib.ExitStack() as stack:
        # Connected before: a flooded loopback drops the first packets of connections, which is not the appliance's.
        one, two = stack.enter_context(HttpGuest(serve.http_url)), stack.enter_context(open_v2(serve, WIDGETS))
        threads, flooding = [], []
        for data in (listing * 1000, listing * 1000, pkt("command=fetch") + DELIM + pkt("x" * 1000) * 20_000):
            sock = stack.enter_context(open_v2(serve, WIDGETS))
            flooding.append(sock)
            threads += [threading.Thread(target=flood, args=(sock, data)), threading.Thread(target=drain, args=(sock,))]
        for thread in threads:
            thread.start()
        waits = []
        try:
            for _ in range(20):
                start = cpu_seconds(serve.pid)
                assert one.ask("GET", "/healthz").status == 200
                two.sendall(listing)
                assert read_answer(two).endswith(FLUSH)
                waits.append(cpu_seconds(serve.pid) - start)
        finally:
            done.set()
            for sock in flooding:
                # The endless request may have been refused and cut off by now.
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join(60)
        # What serve does for the others meanwhile, in seconds of processor time.
        assert sorted(waits)[10] < 1, waits


def test_answers_are_whole_however_the_guest_ends_its_side(node: Node) -> None:
    """A guest that half-closes after its request, and one behind a proxy that never does, on both ports."""
    serve = node.serve
    tip = git("rev-parse", "main", cwd=serve.mirror(BIG))
    requests = [fetch_request(tip, "ofs-delta"), v2_request("fetch", [f"want {tip}", "have " + "2" * 40, "done"])]
    with Watch(serve):
        for request in requests:
            for half in (True, False):
                with open_v2(serve, BIG) as sock:
                    sock.sendall(request)
                    if half:
                        sock.shutdown(socket.SHUT_WR)
                    assert is_whole_pack(pack_of(read_answer(sock)))
                with HttpGuest(serve.http_url) as guest:
                    guest.send("POST", POST, post_headers(), request)
                    if half:
                        guest.sock.shutdown(socket.SHUT_WR)
                    reply = guest.read("POST")
                    assert reply.complete and is_whole_pack(pack_of(reply.body))


def test_guests_that_come_and_go_leave_nothing(node: Node) -> None:
    """Cut off at every stage of a fetch, by a reset or an end: all handles and children are given back."""
    serve = node.serve
    tip = git("rev-parse", "main", cwd=serve.mirror(BIG))
    request = fetch_request(tip, "ofs-delta")
    own = v2_request("fetch", [f"want {tip}", "have " + "3" * 40, "done"])
    head = HEAD.replace(WIDGETS.encode(), BIG.encode())

    def leave(sock: socket.socket, reset: bool) -> None:
        if reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        sock.close()

    http = serve.http_url.removeprefix("http://").split(":")
    with Watch(serve):
        for reset in (True, False):
            for saying in (b"", FIRST[:9], FIRST, FIRST + own, FIRST + own[:50], FIRST + request):
                sock = socket.create_connection(serve.git_address)
                sock.sendall(saying.replace(WIDGETS.encode(), BIG.encode()))
                leave(sock, reset)
            for body in (request, own):
                sock = socket.create_connection((http[0], int(http[1])))
                sock.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
                assert sock.recv(100)
                leave(sock, reset)
            sock = daemon_request(*serve.git_address, "git-upload-pack", f"/{BIG}")
            read_pkts(sock)
            sock.sendall(pkt(f"want {tip} ofs-delta\n") + FLUSH + pkt("done\n"))
            assert sock.recv(100)
            leave(sock, reset)


@pytest.mark.slow
def test_a_miss_that_nobody_waits_for_any_more_does_not_hold_a_place_for_ever(gated: GatedFactory) -> None:
    """Guests that reset while git is still thinking are noticed with the next bytes at the latest."""
    node = gated(serve={"idle_timeout": "2s"})
    node.gate.close()
    sock = open_v2(node.serve, WIDGETS)
    sock.sendall(fetch_request(node.tip, "deepen 77"))
    wait_until(lambda: clients_of(node.serve) == 1, message="it is connected")
    sock.close()
    node.gate.open()
    wait_until(lambda: clients_of(node.serve) == 0, message="it is gone")
