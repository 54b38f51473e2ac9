"""What commands and the live view use to ask a running `serve`, also when either side is old, stops or dies."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from appliance import __version__
from appliance.core.api.client import Watch, call, pages, repo_path, send
from appliance.core.errors import GitmirrorError, NotServing
from appliance.core.events.facts import FetchBegan
from appliance.core.layout import Layout
from appliance.core.models import Repo
from appliance.core.process.control_socket import is_serving, short_name
from appliance.core.process.owner import SERVE, claim
from appliance.core.store.registry import UnknownRepo
from tests.api.server import NAMES, ApiServer
from tests.support.gitutil import wait_until
from tests.support.serve import ROOT


def test_large_answers_are_whole(layout: Layout, server: ApiServer) -> None:
    """A status of thousands of repositories is more than a socket's buffer."""
    assert call(layout, "GET", "/v1/text", query={"times": 5_000_000}) == "x" * 5_000_000


def test_progress_comes_before_the_result_and_need_not_be_listened_to(layout: Layout, server: ApiServer) -> None:
    """As for a first clone."""
    told: list[str] = []
    assert call(layout, "POST", "/v1/tell", {"times": 3}, on_progress=told.append) is None
    assert told == ["step 0", "step 1", "step 2"]
    assert call(layout, "POST", "/v1/tell", {"times": 3}) is None


@pytest.mark.parametrize("listens", [False, True])
def test_an_error_comes_out_as_it_went_in(layout: Layout, server: ApiServer, listens: bool) -> None:
    """Message, hint and exit code, as a response and as the last line of progress."""
    with pytest.raises(GitmirrorError) as caught:
        call(layout, "POST", "/v1/refuse", on_progress=(lambda _: None) if listens else None)
    assert (caught.value.message, caught.value.hint, caught.value.exit_code) == ("no such thing", "try another", 2)


@pytest.mark.parametrize("listens", [False, True])
def test_a_bug_in_serve_is_an_error_and_serve_goes_on(layout: Layout, server: ApiServer, listens: bool) -> None:
    """The caller gets an error with exit code 1."""
    with pytest.raises(GitmirrorError, match="ZeroDivisionError") as caught:
        call(layout, "POST", "/v1/break", on_progress=(lambda _: None) if listens else None)
    assert caught.value.exit_code == 1
    assert call(layout, "POST", "/v1/echo", {}) == {}


def test_values_of_a_query(layout: Layout, server: ApiServer) -> None:
    """None leaves a parameter out; any text and switches go through."""
    query = {"q": "a&b=ö +%", "flag": True, "limit": None}
    assert call(layout, "GET", "/v1/query", query=query) == {"q": "a&b=ö +%", "flag": True}


def test_a_name_in_a_path_is_escaped() -> None:
    assert repo_path("a/b", "sessions", "s/ö ?#") == "/v1/repos/a/b/sessions/s/%C3%B6%20%3F%23"


@pytest.mark.parametrize("name", ["ö/x y", "a/b%2F", "a/?#", "../x", "a/b/c", "\udcff/x"], ids=ascii)
def test_what_is_no_name_leads_to_no_other_route(name: str) -> None:
    """The command says what it says without `serve`."""
    with pytest.raises(UnknownRepo):
        repo_path(name)


def test_bytes_that_are_no_text_are_refused_and_no_bug(layout: Layout, server: ApiServer) -> None:
    """Arguments of a command may be any bytes, which Python shows as halves of surrogate pairs."""
    thing = "/v1/things/%FF"
    asked: list[tuple[str, str, Any, Any]] = [
        ("GET", "/v1/query", None, {"q": "\udcff"}),
        ("GET", thing, None, None),
        ("POST", "/v1/checked", {"name": "\udcff"}, None),
        ("POST", "/v1/checked", {"interval": float("nan")}, None),
    ]
    for method, path, body, query in asked:
        with pytest.raises(GitmirrorError) as caught:
            call(layout, method, path, body, query=query)
        assert caught.value.exit_code == 2


def test_pages_are_all_read(layout: Layout, server: ApiServer) -> None:
    assert list(pages(layout, "/v1/names")) == NAMES
    assert list(pages(layout, "/v1/names", {"limit": 7})) == NAMES


def test_a_request_is_sent_as_it_is(layout: Layout, server: ApiServer) -> None:
    """For the command `api`: any status, and paths that a person types."""
    response = send(layout, "GET", "/v1/things/ö %41", None, "*/*")
    assert (response.status, b"".join(response.pieces)) == (200, b'{"name": "\\u00f6 A"}\n')
    response = send(layout, "GET", "/v1/nothing", None, "*/*")
    assert (response.status, b"no-route" in b"".join(response.pieces)) == (404, True)


def test_many_may_ask_at_once(layout: Layout, server: ApiServer) -> None:
    """Each gets its own answer."""
    answers: dict[int, Any] = {}

    def ask(number: int) -> None:
        answers[number] = call(layout, "POST", "/v1/echo", {"n": number})

    asking = [threading.Thread(target=ask, args=(number,)) for number in range(30)]
    for each in asking:
        each.start()
    for each in asking:
        each.join(60)
    assert answers == {number: {"n": number} for number in range(30)}


def test_a_request_whose_caller_goes_away_is_not_gone_on_with(layout: Layout, server: ApiServer) -> None:
    """Ctrl-C on `refresh` or `add-repo`; the next request is answered."""
    program = (
        "import signal, sys\nfrom pathlib import Path\nfrom appliance.core.api.client import call\n"
        "from appliance.core.layout import Layout\n"
        # A background job of a shell, as the tests themselves may be, is started with SIGINT ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "call(Layout(Path(sys.argv[1])), 'POST', '/v1/wait', {})"
    )
    caller = subprocess.Popen([sys.executable, "-c", program, str(layout.state)], cwd=ROOT, stderr=subprocess.DEVNULL)
    wait_until(lambda: server.seen == ["began"], message="the request runs")
    caller.send_signal(signal.SIGINT)
    caller.wait(60)
    wait_until(lambda: server.seen == ["began", "cancelled"], message="the request is given up")
    assert call(layout, "POST", "/v1/echo", {}) == {}


@pytest.mark.parametrize("listens", [False, True])
def test_stopping_ends_what_is_under_way_and_tells_who_waits(layout: Layout, server: ApiServer, listens: bool) -> None:
    """The caller gets exit code 4 and the hint to try again. The work itself is cancelled."""
    errors: list[GitmirrorError] = []

    def ask() -> None:
        try:
            call(layout, "POST", "/v1/wait", {}, on_progress=(lambda _: None) if listens else None)
        except GitmirrorError as error:
            errors.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    wait_until(lambda: server.seen == ["began"], message="the request runs")
    server.run(server.socket.stop())
    asking.join(60)
    assert [(error.message, error.exit_code) for error in errors] == [("serve is stopping", 4)]
    assert isinstance(errors[0], NotServing)
    assert server.seen == ["began", "cancelled"]
    assert not server.path.exists()


def test_without_serve_there_is_nobody_to_ask(layout: Layout) -> None:
    """Exit code 4. An add-repo that clones by itself does not count as a `serve`."""
    for owned in (None, claim(layout, "add-repo")):
        assert not is_serving(layout)
        with pytest.raises(NotServing, match=f"serve is not running on {layout.state}") as caught:
            call(layout, "GET", "/v1/status")
        assert caught.value.exit_code == 4
        if owned:
            owned.release()


def test_a_serve_that_is_starting_says_so(layout: Layout) -> None:
    """It owns the directory, and its socket does not exist yet."""
    owned = claim(layout, SERVE, control=layout.control_socket)
    with pytest.raises(NotServing, match=f"process {os.getpid()}.*does not answer.*No such file") as caught:
        call(layout, "GET", "/v1/status")
    assert "starting or stopping" in caught.value.hint
    owned.release()


# A serve that answers something else, or dies


class FakeServe:
    """Owns the state directory and answers each connection with these bytes, as soon as it said a line."""

    def __init__(self, layout: Layout, answer: bytes) -> None:
        self._claim = claim(layout, SERVE, control=layout.control_socket)
        self._listening = socket.socket(socket.AF_UNIX)
        with short_name(layout.control_socket) as name:
            self._listening.bind(name)
        self._listening.listen()
        self._answer = answer
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            # What was said is left unread, as an older serve leaves all but the first line.
            with connection:
                connection.recv(1)
                connection.sendall(self._answer)

    def close(self) -> None:
        """Ends it."""
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join(60)
        self._claim.release()


@pytest.fixture
def fake_serve(layout: Layout, request: pytest.FixtureRequest) -> Iterator[FakeServe]:
    """One with the answer that the test is parametrized with."""
    serve = FakeServe(layout, request.param)
    yield serve
    serve.close()


OLD = (
    b'{"error": {"message": "the request is not one line of JSON with a command and its arguments", '
    b'"hint": "serve and this file are of different versions: restart serve", "exit_code": 2}}\n'
)


@pytest.mark.parametrize("fake_serve", [OLD], indirect=True)
def test_a_serve_that_is_older_is_said_to_be_so(layout: Layout, fake_serve: FakeServe) -> None:
    """In one sentence, by every way to ask."""
    asks: list[Callable[[], object]] = [
        lambda: call(layout, "GET", "/v1/status"),
        lambda: call(layout, "POST", "/v1/refresh", {"repos": ["x" * 1000] * 100}),
        lambda: send(layout, "GET", "/v1/status", None, "*/*"),
        lambda: Watch(layout),
    ]
    for ask in asks:
        with pytest.raises(NotServing, match=rf"^serve \(process {os.getpid()}\) is older than this file$") as caught:
            ask()
        assert (caught.value.exit_code, caught.value.hint) == (4, "restart serve")


def test_a_route_that_serve_does_not_know_names_both_versions(layout: Layout, server: ApiServer) -> None:
    """A newer file asks an older serve."""
    with pytest.raises(NotServing) as caught:
        call(layout, "GET", "/v1/dance")
    assert caught.value.message == (
        f"the running serve (version {__version__}) does not know GET /v1/dance, and this file is {__version__}"
    )
    assert (caught.value.exit_code, "restart serve" in caught.value.hint) == (4, True)


@pytest.mark.parametrize(
    "fake_serve",
    [
        b"HTTP/1.1 500 Oh\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nwords",
        b"HTTP/1.1 503 Oh\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 404 Oh\r\nContent-Type: application/problem+json\r\nContent-Length: 2\r\n\r\n[]",
        b"HTTP/1.1 404 Oh\r\nContent-Type: application/problem+json\r\nContent-Length: 1\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1\r\n\r\n{",
    ],
    indirect=True,
    ids=["text", "json", "list", "half a problem", "half a document"],
)
def test_what_is_no_answer_is_an_error_and_never_a_result(layout: Layout, fake_serve: FakeServe) -> None:
    """A text of status 500 was taken for what was asked for."""
    with pytest.raises(GitmirrorError) as caught:
        call(layout, "GET", "/v1/status")
    assert caught.value.exit_code in (1, 4)


DYING = """
import os, socket, sys
from pathlib import Path
from appliance.core.layout import Layout
from appliance.core.process.owner import claim
layout = Layout(Path(sys.argv[1]))
claim(layout, "serve", control=layout.control_socket)
os.chdir(layout.state)
listening = socket.socket(socket.AF_UNIX)
listening.bind("control.sock")
listening.listen()
print("ready", flush=True)
client, _ = listening.accept()
client.recv(65536)
client.sendall(sys.argv[2].encode())
os.kill(os.getpid(), 9)
"""
HEAD = "HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "half",
    [
        "",
        "HTTP/1.1 20",
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n",
        'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{"ser',
        HEAD,
        HEAD + '14\r\n{"progress": "50%"}\n\r\n',
        HEAD + '14\r\n{"progress": "50%"}\n\r\n40\r\n{"resu',
    ],
    ids=range(7),
)
def test_a_serve_that_is_killed_before_it_answered_is_not_serving(layout: Layout, half: str) -> None:
    """Also in the middle of a head, of a document, and of a line of progress."""
    argv = [sys.executable, "-c", DYING, str(layout.state), half]
    serve = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert serve.stdout
    assert serve.stdout.readline() == "ready\n"
    with pytest.raises(NotServing, match=rf"serve \(process {serve.pid}\) ended before it answered|does not answer"):
        call(layout, "GET", "/v1/status", on_progress=lambda _: None)
    serve.communicate()


def test_a_serve_that_is_killed_while_its_answer_is_read(layout: Layout) -> None:
    """The command `api` says so, after what it has printed."""
    argv = [sys.executable, "-c", DYING, str(layout.state), HEAD + "3\r\nabc\r\n"]
    serve = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert serve.stdout
    assert serve.stdout.readline() == "ready\n"
    with pytest.raises(NotServing, match=rf"serve \(process {serve.pid}\) ended before it answered"):
        for _ in send(layout, "GET", "/v1/events", None, "*/*").pieces:
            pass
    serve.communicate()


# Events


def fetch(name: str, want: str = "1" * 40) -> FetchBegan:
    """An event about a repository."""
    repo = Repo(1, name, "https://example.com/o/x", None, "cli", None, True, 0.0)
    return FetchBegan(repo=repo, want=want, shape="depth 1", client="10.0.0.7", protocol="git")


def test_who_watches_gets_each_event_from_then_on(layout: Layout, server: ApiServer) -> None:
    server.publish(fetch("o/before"))
    watches = [Watch(layout), Watch(layout)]
    server.publish(fetch("o/x"))
    server.publish(fetch("o/y", want="7" * 40))
    for watch in watches:
        events = iter(watch)
        first, second = next(events), next(events)
        assert (first["event"], first["repo"], first["want"]) == ("hydrating", "o/x", "1" * 40)
        assert (second["event"], second["repo"], second["want"]) == ("hydrating", "o/y", "7" * 40)
        assert first["at"].endswith("Z")
        watch.close()


def test_watching_ends_when_either_side_hangs_up(layout: Layout, server: ApiServer) -> None:
    ended = Watch(layout)
    ended_here = threading.Thread(target=lambda: list(ended), daemon=True)
    ended_here.start()
    ended.close()
    ended_here.join(60)
    assert not ended_here.is_alive()
    left = Watch(layout)
    server.run(server.socket.stop())
    assert list(left) == []
    left.close()
    with pytest.raises(NotServing):
        Watch(layout)


def test_the_client_loads_no_framework() -> None:
    """Every command that asks `serve` imports it, and none waits for Starlette."""
    program = "import sys, appliance.core.api.client; print('starlette' in sys.modules or 'anyio' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
