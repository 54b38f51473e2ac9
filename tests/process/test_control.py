"""The control socket: requests and responses between processes, also when either side ends early."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from appliance.core.daemon.control_server import LONGEST_LINE, ControlServer
from appliance.core.errors import GitmirrorError, NotServing, UsageError
from appliance.core.events.facts import Event, FetchBegan
from appliance.core.layout import Layout
from appliance.core.models import Repo
from appliance.core.observability.event_stream import EventStream
from appliance.core.process.control import Tell, Watch, call, is_serving, short_name
from appliance.core.process.owner import SERVE, claim
from tests.support.gitutil import wait_until
from tests.support.serve import ROOT

Arguments = Mapping[str, Any]


class Server:
    """A ControlServer on its own loop in a thread, owned as serve owns it. `seen` is what its handlers did."""

    def __init__(self, layout: Layout, path: Path | None = None) -> None:
        self.path = path or layout.control_socket
        self.seen: list[str] = []
        self.claim = claim(layout, SERVE, control=self.path)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        handlers = {
            "echo": self._echo,
            "tell": self._tell,
            "wait": self._wait,
            "refuse": self._refuse,
            "break": self._break,
            "repeat": self._repeat,
        }
        self.feed = EventStream()
        self.server = ControlServer(self.path, handlers, self.feed)
        self.run(self.server.start())

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Runs `work` on the server's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def publish(self, event: Event) -> None:
        """Publishes an event on the server's loop, as `serve` does."""
        self._loop.call_soon_threadsafe(self.feed.publish, event)

    def close(self) -> None:
        """Stops it."""
        self.run(self.server.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)
        self._loop.close()
        self.claim.release()

    async def _echo(self, arguments: Arguments, tell: Tell) -> Any:
        return dict(arguments)

    async def _tell(self, arguments: Arguments, tell: Tell) -> Any:
        for number in range(arguments["times"]):
            tell(f"step {number}")
            await asyncio.sleep(0)
        return None

    async def _wait(self, arguments: Arguments, tell: Tell) -> Any:
        self.seen.append("began")
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            self.seen.append("cancelled")
            raise

    async def _refuse(self, arguments: Arguments, tell: Tell) -> Any:
        raise UsageError("no such thing", hint="try another")

    async def _repeat(self, arguments: Arguments, tell: Tell) -> Any:
        return "x" * int(arguments["times"])

    async def _break(self, arguments: Arguments, tell: Tell) -> Any:
        raise ZeroDivisionError("oh")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """A state directory whose path alone is longer than a unix socket's may be."""
    state = tmp_path / ("long-" * 20) / "state"
    state.mkdir(parents=True)
    assert len(os.fsencode(Layout(state).control_socket)) > 107
    return Layout(state)


@pytest.fixture
def server(layout: Layout) -> Iterator[Server]:
    """A running one."""
    made = Server(layout)
    yield made
    made.close()


def test_a_command_is_answered_across_a_path_of_any_length(layout: Layout, server: Server) -> None:
    """The kernel's limit is 107 bytes; any text goes both ways."""
    assert is_serving(layout)
    document: dict[str, Any] = {"url": "https://h/ö\n\0", "number": 1.5, "none": None, "list": [{}]}
    assert call(layout, "echo", **document) == document


def test_large_answers_are_whole(layout: Layout, server: Server) -> None:
    """A status of thousands of repositories is more than a socket's buffer."""
    assert call(layout, "repeat", times=5_000_000) == "x" * 5_000_000


def test_progress_comes_before_the_result_and_need_not_be_listened_to(layout: Layout, server: Server) -> None:
    """As for a first clone."""
    told: list[str] = []
    assert call(layout, "tell", on_progress=told.append, times=3) is None
    assert told == ["step 0", "step 1", "step 2"]
    assert call(layout, "tell", times=3) is None


def test_an_error_comes_out_as_it_went_in(layout: Layout, server: Server) -> None:
    """Message, hint and exit code."""
    with pytest.raises(GitmirrorError) as caught:
        call(layout, "refuse")
    assert (caught.value.message, caught.value.hint, caught.value.exit_code) == ("no such thing", "try another", 2)


def test_an_unknown_command_says_that_versions_differ(layout: Layout, server: Server) -> None:
    """A newer file asks an older serve."""
    with pytest.raises(GitmirrorError, match="does not know the command 'dance'") as caught:
        call(layout, "dance")
    assert "restart serve" in caught.value.hint


def said_raw(server: Server, line: bytes) -> Any:
    """The answer to a line as it is."""
    with socket.socket(socket.AF_UNIX) as client, short_name(server.path) as name:
        client.settimeout(60)
        client.connect(name)
        client.sendall(line)
        client.shutdown(socket.SHUT_WR)
        with client.makefile("rb") as answers:
            return json.loads(answers.readline())


@pytest.mark.parametrize(
    "line",
    [
        b"[]\n",
        b"7\n",
        b'"status"\n',
        b"{half",
        b"\xff\n",
        b"[" * 100_000 + b"\n",
        b"1" * 5000 + b"\n",
        b'{"command": ["status"]}\n',
        b'{"command": {}}\n',
        b'{"command": "echo", "arguments": []}\n',
        b'{"command": "echo", "arguments": null}\n',
    ],
    ids=lambda line: repr(line[:20]),
)
def test_a_line_that_is_no_request_is_an_error_and_no_bug(
    server: Server, line: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """It used to be a traceback in the log, and some lines got no answer at all."""
    error = said_raw(server, line)["error"]
    assert (error["exit_code"], error["message"]) == (
        2,
        "the request is not one line of JSON with a command and its arguments",
    )
    assert caplog.records == []


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_a_line_that_is_too_long_is_an_error(server: Server, end: bytes) -> None:
    """Reading 64 MB of JSON took seconds on the loop. The line is read to its end, so that the error arrives."""
    error = said_raw(server, b'{"command": "echo", "x": "' + b"x" * 5_000_000 + b'"}' + end)["error"]
    assert error["message"] == f"the request has more than {LONGEST_LINE} bytes"


def test_a_bug_in_a_handler_is_an_error_and_serve_goes_on(layout: Layout, server: Server) -> None:
    """The caller gets an error with exit code 1."""
    with pytest.raises(GitmirrorError, match="ZeroDivisionError") as caught:
        call(layout, "break")
    assert caught.value.exit_code == 1
    assert call(layout, "echo") == {}


def raw(server: Server, data: bytes) -> bytes:
    """The socket's response to raw bytes. Our end stays open until the response is complete."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(60)
        descriptor = os.open(server.path.parent, os.O_RDONLY)
        client.connect(f"/proc/self/fd/{descriptor}/{server.path.name}")
        os.close(descriptor)
        client.sendall(data)
        answer = b""
        while more := client.recv(65536):
            answer += more
        return answer


@pytest.mark.parametrize(
    "line", [b"nonsense\n", b"\xff\xfe\n", b"{\n", b"[]\n", b"1\n", b"null\n", b'{"command": 1}\n', b"\n"]
)
def test_what_is_no_command_breaks_nothing(layout: Layout, server: Server, line: bytes) -> None:
    """An error or nothing, and the next command is answered."""
    answer = raw(server, line)
    assert not answer or "error" in json.loads(answer)
    assert call(layout, "echo") == {}


def test_only_user_and_group_may_ask(layout: Layout, server: Server) -> None:
    """Mode 0660, whatever the umask; the umask is as before."""
    assert stat.S_IMODE(server.path.stat().st_mode) == 0o660
    assert stat.S_ISSOCK(server.path.stat().st_mode)
    before = os.umask(0)
    os.umask(before)
    assert before != 0o117


def test_a_command_whose_caller_goes_away_is_not_gone_on_with(layout: Layout, server: Server) -> None:
    """Ctrl-C on `refresh` or `add-repo`; the next command is answered."""
    program = (
        "import signal, sys\nfrom pathlib import Path\nfrom appliance.core.process.control import call\n"
        "from appliance.core.layout import Layout\n"
        # A background job of a shell, as the tests themselves may be, is started with SIGINT ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\ncall(Layout(Path(sys.argv[1])), 'wait')"
    )
    caller = subprocess.Popen([sys.executable, "-c", program, str(layout.state)], cwd=ROOT, stderr=subprocess.DEVNULL)
    wait_until(lambda: server.seen == ["began"], message="the command runs")
    caller.send_signal(signal.SIGINT)
    caller.wait(60)
    wait_until(lambda: server.seen == ["began", "cancelled"], message="the command is given up")
    assert call(layout, "echo") == {}


def test_stopping_ends_the_commands_under_way_and_tells_who_waits(layout: Layout, server: Server) -> None:
    """The caller gets exit code 4 and the hint to try again. The command itself is cancelled."""
    errors: list[GitmirrorError] = []

    def ask() -> None:
        try:
            call(layout, "wait")
        except GitmirrorError as error:
            errors.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    wait_until(lambda: server.seen == ["began"], message="the command runs")
    server.run(server.server.stop())
    asking.join(60)
    assert [(error.message, error.exit_code) for error in errors] == [("serve is stopping", 4)]
    assert server.seen == ["began", "cancelled"]
    assert not server.path.exists()


def test_many_may_ask_at_once(layout: Layout, server: Server) -> None:
    """Each gets its own answer."""
    answers: dict[int, Any] = {}
    asking = [threading.Thread(target=lambda n=n: answers.update({n: call(layout, "echo", n=n)})) for n in range(30)]
    for each in asking:
        each.start()
    for each in asking:
        each.join(60)
    assert answers == {n: {"n": n} for n in range(30)}


def test_a_socket_that_a_killed_serve_left_is_replaced(layout: Layout) -> None:
    """Binding over it would fail for ever."""
    layout.state.mkdir(exist_ok=True)
    with socket.socket(socket.AF_UNIX) as left:
        descriptor = os.open(layout.state, os.O_RDONLY)
        left.bind(f"/proc/self/fd/{descriptor}/control.sock")
        os.close(descriptor)
    assert layout.control_socket.exists()
    server = Server(layout)
    assert call(layout, "echo", a=1) == {"a": 1}
    server.close()


def test_a_socket_elsewhere_is_found_by_the_owners_word(layout: Layout, tmp_path: Path) -> None:
    """Under systemd it is in the runtime directory."""
    (tmp_path / "runtime").mkdir()
    server = Server(layout, tmp_path / "runtime" / "control.sock")
    assert call(layout, "echo", a=1) == {"a": 1}
    server.close()


def test_a_place_where_it_cannot_be_is_an_error_in_words(layout: Layout, tmp_path: Path) -> None:
    """For example in a missing directory."""

    async def start() -> None:
        await ControlServer(tmp_path / "missing" / "control.sock", {}).start()

    with pytest.raises(GitmirrorError, match=r"control\.sock cannot be created"):
        asyncio.run(start())


def test_without_serve_there_is_nobody_to_ask(layout: Layout) -> None:
    """Exit code 4. An add-repo that clones by itself does not count as a `serve`."""
    for owned in (None, claim(layout, "add-repo")):
        assert not is_serving(layout)
        with pytest.raises(NotServing, match=f"serve is not running on {layout.state}") as caught:
            call(layout, "status")
        assert caught.value.exit_code == 4
        if owned:
            owned.release()


def test_a_serve_that_is_starting_says_so(layout: Layout) -> None:
    """It owns the directory, and its socket does not exist yet, or exists without a listener."""
    owned = claim(layout, SERVE, control=layout.control_socket)
    with pytest.raises(NotServing, match=f"process {os.getpid()}.*does not answer.*No such file") as caught:
        call(layout, "status")
    assert "starting or stopping" in caught.value.hint
    owned.release()


DYING = """
import os, socket, sys
from pathlib import Path
from appliance.core.events.facts import Event, FetchBegan
from appliance.core.layout import Layout
from appliance.core.models import Repo
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


@pytest.mark.parametrize("half", ["", '{"progress": "50%"}\n', '{"result": {"ser', '{"progress": "50%"}\n{"resu'])
def test_a_serve_that_is_killed_before_it_answered_is_not_serving(layout: Layout, half: str) -> None:
    """Also in the middle of a line."""
    argv = [sys.executable, "-c", DYING, str(layout.state), half]
    serve = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert serve.stdout
    assert serve.stdout.readline() == "ready\n"
    with pytest.raises(NotServing, match=rf"serve \(process {serve.pid}\) ended before it answered|does not answer"):
        call(layout, "status")
    serve.communicate()


def fetch(name: str, want: str = "1" * 40) -> FetchBegan:
    """An event about a repository."""
    repo = Repo(1, name, "https://example.com/o/x", None, "cli", None, True, 0.0)
    return FetchBegan(repo=repo, want=want, shape="depth 1", client="10.0.0.7", protocol="git")


def test_who_watches_gets_each_event_from_then_on(layout: Layout, server: Server) -> None:
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


def test_watching_ends_when_either_side_hangs_up(layout: Layout, server: Server) -> None:
    ended = Watch(layout)
    ended_here = threading.Thread(target=lambda: list(ended), daemon=True)
    ended_here.start()
    ended.close()
    ended_here.join(60)
    assert not ended_here.is_alive()
    left = Watch(layout)
    server.run(server.server.stop())
    assert list(left) == []
    left.close()
    with pytest.raises(NotServing):
        Watch(layout)
