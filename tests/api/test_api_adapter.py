"""The ASGI adapter over our HTTP: framing, kept connections, clients that leave, and a `serve` that stops."""

from __future__ import annotations

import contextlib
import gzip
import json
import logging
import resource
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from appliance.core.api import parsing
from appliance.core.api.parsing import LARGEST_BODY
from appliance.core.serving.net import asgi
from tests.api.server import ApiServer, FakeToken
from tests.api.wire import Address, Wire, chunked, request
from tests.support.gitutil import wait_until


@pytest.fixture(autouse=True)
def clean_log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing that a client does is a traceback in the log of `serve`."""
    caplog.set_level(logging.INFO)
    yield
    found = [each for each in caplog.get_records("call") if each.levelno >= logging.ERROR or each.exc_info]
    assert not found, [each.getMessage() for each in found]


@pytest.fixture(params=["socket", "admin"])
def address(server: ApiServer, request: pytest.FixtureRequest) -> Address:
    """Of the control socket, and of the admin port, where the tests have a token."""
    server.tokens["t"] = FakeToken("operate")
    return server.path if request.param == "socket" else server.admin


TOKEN: dict[str, Any] = {"Authorization": "Bearer t"}
PACKED = gzip.compress(b"{}", mtime=0)


def echo(body: bytes, **headers: str) -> bytes:
    """A request whose body comes back."""
    return request("POST", "/v1/echo", body, **TOKEN, **headers)


def test_requests_follow_each_other_on_one_connection(address: Address) -> None:
    with Wire(address) as wire:
        for number in range(3):
            assert wire.ask("POST", "/v1/echo", b'{"n": %d}' % number, **TOKEN).document() == {"n": number}
        assert wire.ask("GET", "/v1/nothing", **TOKEN).status == 404
        assert wire.ask("GET", "/v1/query?limit=3", **TOKEN).document() == {"limit": 3}


def test_pipelined_requests_are_answered_in_order(address: Address) -> None:
    """More than the reads after which a connection lets others run; some have bodies, counted or chunked, or HEAD."""
    said, expected = b"", list[dict[str, int] | None]()
    for number in range(1, 201):
        counted = b'{"n": %d}' % number
        match number % 4:
            case 0:
                said += request("GET", f"/v1/query?limit={number}", **TOKEN)
            case 1:
                said += echo(counted)
            case 2:
                head = request("POST", "/v1/echo", **TOKEN, Transfer_Encoding="chunked")
                said += head + chunked(counted[:3], counted[3:])
            case _:
                said += request("HEAD", f"/v1/query?limit={number}", **TOKEN)
        expected.append(None if number % 4 == 3 else {"limit" if number % 4 == 0 else "n": number})
    with Wire(address) as wire:
        sending = threading.Thread(target=wire.say, args=(said,))
        sending.start()
        for document in expected:
            answer = wire.response("HEAD" if document is None else "GET")
            assert answer.status == 200
            assert document is None or answer.document() == document
        sending.join(60)


def test_a_request_may_come_while_another_is_answered(server: ApiServer) -> None:
    """It waits for its turn, whole or in pieces, and the first is not taken for one whose client left."""
    with Wire(server.path) as wire:
        wire.say(request("POST", "/v1/wait", b"{}", Accept="application/x-ndjson"))
        assert wire.head()[0] == 200
        assert json.loads(wire.piece()) == {"progress": "waiting"}
        wire.say(request("GET", "/v1/query?limit=1")[:20])
        assert server.seen == ["began"]
        with Wire(server.path) as other:
            assert other.ask("GET", "/v1/query").status == 200
        assert server.seen == ["began"]
    wait_until(lambda: server.seen == ["began", "cancelled"], message="the first is given up")


def test_what_comes_ahead_is_the_next_request(server: ApiServer) -> None:
    """The bytes that are read to notice a client that leaves are not lost."""
    with Wire(server.path) as wire:
        wire.say(request("POST", "/v1/gate", b"{}"))
        wait_until(lambda: server.seen == ["began"], message="it runs")
        following = request("POST", "/v1/echo", b'{"after": 1}')
        wire.say(following[:30])
        wire.say(following[30:])
        server.open_gate()
        assert wire.response().document() == {"passed": True}
        assert wire.response().document() == {"after": 1}


@pytest.mark.parametrize("target", ["/v1/query?limit=3", "/v1/nothing", "/v1/openapi.json", "/v1/query?limit=x"])
def test_head_is_get_without_the_body(address: Address, target: str) -> None:
    """The same status and headers, and the connection goes on."""
    with Wire(address) as wire:
        got, head = wire.ask("GET", target, **TOKEN), wire.ask("HEAD", target, **TOKEN)
        assert (head.status, head.body) == (got.status, b"")
        assert head.headers == got.headers
        assert wire.ask("GET", "/v1/query", **TOKEN).status == 200


@pytest.mark.parametrize("target", ["/v1/events", "/v1/pieces"])
def test_head_of_what_has_no_end_ends(address: Address, target: str) -> None:
    """It used to wait for a body that is not sent, with no head either."""
    with Wire(address) as wire:
        head = wire.ask("HEAD", target, **TOKEN)
        assert (head.status, head.headers["transfer-encoding"]) == (200, "chunked")
        assert wire.ask("GET", "/v1/query", **TOKEN).status == 200


def test_bodies_are_counted_chunked_or_gzip(address: Address) -> None:
    body = json.dumps({"x": "y" * 100_000}).encode()
    with Wire(address) as wire:
        for said in (
            echo(body),
            request("POST", "/v1/echo", **TOKEN, Transfer_Encoding="chunked")
            + chunked(body[:1], body[1:70_000], body[70_000:]),
            echo(gzip.compress(body), Content_Encoding="gzip"),
        ):
            assert wire.say(said).response().document() == json.loads(body)


def test_a_body_is_asked_for_when_its_client_waits_for_that(address: Address) -> None:
    """`Expect: 100-continue`, as curl sends it for a body of a megabyte."""
    with Wire(address) as wire:
        whole = echo(b'{"n": 1}', Expect="100-continue")
        wire.say(whole[:-8])
        assert wire.response().status == 100
        wire.say(whole[-8:])
        assert wire.response().document() == {"n": 1}
        assert wire.ask("GET", "/v1/query", Expect="100-continue", **TOKEN).status in (100, 200)


def test_a_body_that_is_not_wanted_is_not_asked_for(server: ApiServer) -> None:
    """Without a token it is refused at once. The connection ends, because the body may come or not."""
    with Wire(server.admin) as wire:
        wire.say(request("POST", "/v1/echo", b"{}", Expect="100-continue")[:-2])
        wire.response().problem(401, "unauthorized")
        assert wire.is_ended()


@pytest.mark.parametrize("size", [LARGEST_BODY + 1, 20 * LARGEST_BODY])
@pytest.mark.parametrize("coding", ["counted", "chunked", "gzip"])
def test_a_body_that_is_too_large_is_refused(address: Address, size: int, coding: str) -> None:
    """The client that sends it all reads the problem. Then the connection goes on, or ends without a reset."""
    body = b'{"x": "' + b"y" * size + b'"}'
    said = {
        "counted": lambda: echo(body),
        "chunked": lambda: request("POST", "/v1/echo", **TOKEN, Transfer_Encoding="chunked") + chunked(body),
        "gzip": lambda: echo(gzip.compress(body), Content_Encoding="gzip"),
    }[coding]()
    with Wire(address) as wire:
        sending = threading.Thread(target=_send, args=(wire, said))
        sending.start()
        problem = wire.response().problem(413, "too-large-body")
        assert str(LARGEST_BODY) in problem["detail"]
        sending.join(60)
        if size == LARGEST_BODY + 1:
            assert wire.ask("GET", "/v1/query", **TOKEN).status == 200


def _send(wire: Wire, data: bytes) -> None:
    with contextlib.suppress(OSError):
        wire.say(data)


def test_a_body_that_is_dribbled_in_is_given_up(address: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a problem, and the connection ends: what is left of the body is waited for no longer."""
    monkeypatch.setattr(parsing, "BODY_TIMEOUT", 0.3)
    with Wire(address) as wire:
        wire.say(echo(b'{"n": 1}')[:-3])
        problem = wire.response().problem(400, "invalid")
        assert "0.3 seconds" in problem["detail"]
        assert wire.is_ended()


@pytest.mark.parametrize(
    ("headers", "body", "status", "name", "words"),
    [
        ({"Content_Encoding": "br"}, b"{}", 415, "encoding", "gzip"),
        ({"Content_Encoding": "gzip"}, b"{}", 400, "invalid", "not gzip"),
        ({"Content_Encoding": "gzip"}, PACKED[:-5], 400, "invalid", "in the middle"),
        ({"Content_Encoding": "gzip"}, PACKED + b"x", 400, "invalid", "follow"),
        ({"Transfer_Encoding": "chunked"}, b"{}", 400, "invalid", "either"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_the_http_layer_refuses_is_a_problem_too(
    address: Address, headers: dict[str, Any], body: bytes, status: int, name: str, words: str
) -> None:
    """The client of an API need not read plain text."""
    with Wire(address) as wire:
        problem = wire.ask("POST", "/v1/echo", body, **TOKEN, **headers).problem(status, name)
        assert words in problem["detail"]


def test_what_is_no_http_is_a_problem(address: Address) -> None:
    """On the admin port, nobody knows what it was for; a client of the API is promised a problem."""
    with Wire(address) as wire:
        wire.say(b"\0nonsense\r\n\r\n").response().problem(400, "invalid")
        assert wire.is_ended()
    with Wire(address) as wire:
        head = b"GET /v1/query HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 400_000 + b"\r\n\r\n"
        wire.say(head).response().problem(431, "invalid")


def test_a_coding_without_a_body_is_asked_for_a_token_first(server: ApiServer) -> None:
    for coding in (b"br", b"gzip"):
        with Wire(server.admin) as wire:
            wire.say(b"GET /v1/query HTTP/1.1\r\nHost: x\r\nContent-Encoding: %s\r\n\r\n" % coding)
            wire.response().problem(401, "unauthorized")


def test_a_request_whose_client_hangs_up_is_cancelled(address: Address, server: ApiServer) -> None:
    """With and without a body, and with one that came in pieces."""
    for said in (request("GET", "/v1/wait", **TOKEN), request("POST", "/v1/wait", b"{}", **TOKEN)):
        server.seen.clear()
        wire = Wire(address).say(said)
        wait_until(lambda: server.seen == ["began"], message="it runs")
        wire.close()
        wait_until(lambda: server.seen == ["began", "cancelled"], message="it is given up")


def test_progress_whose_reader_hangs_up_ends_the_work(address: Address, server: ApiServer) -> None:
    wire = Wire(address).say(request("POST", "/v1/wait", b"{}", Accept="application/x-ndjson", **TOKEN))
    assert wire.head()[1]["content-type"] == "application/x-ndjson"
    assert json.loads(wire.piece()) == {"progress": "waiting"}
    wire.close()
    wait_until(lambda: server.seen == ["began", "cancelled"], message="it is given up")


def test_a_stream_whose_reader_stalls_and_hangs_up_is_ended(address: Address, server: ApiServer) -> None:
    """It is ended while it waits for room in the socket, and its generator with it."""
    wire = Wire(address).say(request("GET", "/v1/pieces", **TOKEN))
    assert wire.head()[0] == 200
    wire.close()
    wait_until(lambda: server.seen == ["began", "ended"], message="the stream is ended")


def test_the_reader_of_events_who_hangs_up_is_forgotten(address: Address, server: ApiServer) -> None:
    wire = Wire(address).say(request("GET", "/v1/events", **TOKEN))
    assert wire.head()[0] == 200
    assert wire.piece().startswith(b":")
    assert server.on_loop(server.watching) == 1
    wire.close()
    wait_until(lambda: server.on_loop(server.watching) == 0, message="nobody is subscribed")


@pytest.mark.parametrize("at", [5, 30, -1])
def test_half_a_request_is_no_bug(address: Address, server: ApiServer, at: int) -> None:
    """In the request line, in the headers and in the body."""
    with Wire(address) as wire:
        wire.say(echo(b'{"n": 1}')[:at])
        wire.socket.shutdown(socket.SHUT_WR)
        wire.is_ended()
    with Wire(address) as wire:
        assert wire.ask("GET", "/v1/query", **TOKEN).status == 200


def test_who_only_ends_their_side_is_answered_or_not_but_never_lied_to(address: Address, server: ApiServer) -> None:
    """`nc -N` does so. `serve` does not stop, so it must not say that."""
    with Wire(address) as wire:
        wire.say(request("GET", "/v1/wait", **TOKEN))
        wire.socket.shutdown(socket.SHUT_WR)
        assert wire.is_ended()
    assert server.seen in ([], ["began", "cancelled"])


def test_garbage_behind_a_request_that_waits_takes_bounded_memory(server: ApiServer) -> None:
    """Ten megabytes stay in the client's hands. The request is answered, and then the garbage is refused."""
    with Wire(server.path) as wire:
        wire.say(request("POST", "/v1/gate", b"{}"))
        wait_until(lambda: server.seen == ["began"], message="it runs")
        garbage, sent = memoryview(b"garbage " * 131072 * 10), 0
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        wire.socket.setblocking(False)
        until = time.monotonic() + 60
        stalled = 0
        while sent < len(garbage) and stalled < 50 and time.monotonic() < until:
            try:
                sent += wire.socket.send(garbage[sent:])
                stalled = 0
            except BlockingIOError:
                server.on_loop(lambda: None)
                stalled += 1
        assert sent < 2**20, "it was taken in"
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 8 * 1024
        wire.socket.settimeout(60)
        server.open_gate()
        assert wire.response().document() == {"passed": True}
        wire.response().problem(431, "invalid")
        assert wire.is_ended()


def test_stopping_is_said_to_those_who_wait(server: ApiServer) -> None:
    """A problem of status 503; the work is cancelled."""
    wires = [
        Wire(server.path).say(request("POST", "/v1/wait", b"{}")),
        Wire(server.path).say(request("GET", "/v1/wait")),
    ]
    wait_until(lambda: server.seen == ["began"] * 2, message="they run")
    server.run(server.socket.stop())
    for wire in wires:
        assert wire.response().problem(503, "stopping")["detail"] == "serve is stopping"
        assert wire.is_ended()
        wire.close()
    assert server.seen == ["began"] * 2 + ["cancelled"] * 2


def test_stopping_is_said_at_the_end_of_progress(server: ApiServer) -> None:
    """As the last line, and the body is whole."""
    with Wire(server.path) as wire:
        wire.say(request("POST", "/v1/wait", b"{}", Accept="application/x-ndjson"))
        wire.head()
        assert json.loads(wire.piece()) == {"progress": "waiting"}
        server.run(server.socket.stop())
        assert json.loads(wire.piece())["error"]["type"] == "urn:gitmirror:problem:stopping"
        assert wire.piece() == b""
        assert wire.is_ended()


def test_stopping_waits_for_nobody_who_does_not_read(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in the middle of a body, nor with the word that it stops."""
    monkeypatch.setattr(asgi, "FAREWELL", 0.2)
    wires = [Wire(server.path).say(request("GET", target)) for target in ("/v1/pieces", "/v1/stubborn")]
    wait_until(lambda: len(server.seen) == 2, message="they run")
    server.run(server.socket.stop())
    for wire in wires:
        wire.close()


def test_a_large_body_reaches_a_slow_reader_whole(address: Address) -> None:
    with Wire(address) as wire:
        assert wire.ask("GET", "/v1/text?times=5000000", **TOKEN).body == b"x" * 5_000_000


def test_many_connect_at_once(server: ApiServer) -> None:
    """Each gets its own answer."""
    wires = [Wire(server.path).say(echo(b'{"n": %d}' % number)) for number in range(100)]
    for number, wire in enumerate(wires):
        assert wire.response().document() == {"n": number}
        wire.close()
