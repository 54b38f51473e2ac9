"""The protocols between systemd and `serve`, over real datagram sockets and really inherited descriptors."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance.core.config.addresses import parse_listeners
from appliance.core.config.settings import Config, ServeConfig
from appliance.core.daemon.state import ServeState
from appliance.core.daemon.systemd import (
    VARIABLES,
    InheritedSocketError,
    Notifier,
    inherited_sockets,
    take_environment,
)
from appliance.core.layout import Layout
from appliance.core.ops.listening import listen_drop_ins
from tests.support.serve import ROOT

UNITS = sorted((ROOT / "systemd").glob("gitmirror*.s[eo][rc]*[et]"))


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A socket that receives as systemd does, and its address in the form of NOTIFY_SOCKET."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    # pytest's directory may be too long for a socket's path.
    named = str(Path("/tmp") / f"gitmirror-{uuid.uuid4().hex}")
    address = named if request.param == "path" else f"@{named}"
    listening.bind(address if request.param == "path" else f"\0{named}")
    listening.settimeout(60)
    yield listening, address
    listening.close()
    Path(named).unlink(missing_ok=True)


def heard(listening: socket.socket) -> dict[str, str]:
    """The assignments of the next datagram."""
    return dict(line.split("=", 1) for line in listening.recv(4096).decode().split("\n"))


def test_every_message_reaches_the_manager(manager: tuple[socket.socket, str]) -> None:
    """READY, STATUS, RELOADING, WATCHDOG and STOPPING are each one datagram in systemd's words."""
    listening, address = manager
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": address})
    notifier.ready("3 repositories")
    assert heard(listening) == {"READY": "1", "STATUS": "3 repositories"}
    notifier.status("2 stale\nX_FORGED=1")
    assert heard(listening) == {"STATUS": "2 stale X_FORGED=1"}, "a line break must not begin an assignment"
    notifier.reloading()
    reload = heard(listening)
    assert reload.pop("MONOTONIC_USEC").isdigit()
    assert reload == {"RELOADING": "1"}
    notifier.watchdog()
    assert heard(listening) == {"WATCHDOG": "1"}
    notifier.stopping(30)
    assert heard(listening) == {"STOPPING": "1", "EXTEND_TIMEOUT_USEC": "30000000"}
    notifier.close()


def test_without_a_manager_nothing_happens(caplog: pytest.LogCaptureFixture) -> None:
    """Outside systemd every call is silent, and nobody watches."""
    notifier = Notifier.from_environment({"WATCHDOG_USEC": "1000000"})
    notifier.ready("x")
    notifier.watchdog()
    notifier.stopping()
    assert notifier.watchdog_interval is None
    assert not caplog.records


def test_a_manager_that_is_gone_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A socket that nobody reads neither raises nor fills the log."""
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": str(tmp_path / "gone")})
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            notifier.watchdog()
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_an_address_of_an_unknown_kind_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    """`vsock:` addresses exist (of a virtual machine's manager); they are named in the log and ignored."""
    Notifier.from_environment({"NOTIFY_SOCKET": "vsock:2:1234"}).ready("x")
    assert "vsock:2:1234" in caplog.text


def test_a_full_queue_neither_blocks_nor_loses_ready(manager: tuple[socket.socket, str]) -> None:
    """A message for which systemd's queue had no room goes out with the next one."""
    listening, address = manager
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.setblocking(False)
        target = f"\0{address[1:]}" if address.startswith("@") else address
        filled = 0
        try:
            while True:
                other.sendto(b"X=1", target)
                filled += 1
        except BlockingIOError:
            pass
        notifier = Notifier.from_environment({"NOTIFY_SOCKET": address})
        notifier.reloading()
        notifier.ready("up")
        for _ in range(filled):
            assert heard(listening) == {"X": "1"}
        notifier.watchdog()
        # RELOADING has gone: systemd ignores a READY beside it.
        assert heard(listening) == {"READY": "1", "STATUS": "up", "WATCHDOG": "1"}
        notifier.status("again")
        assert heard(listening) == {"STATUS": "again"}, "what was sent is not sent again"
        notifier.close()


@pytest.mark.parametrize(
    ("environ", "interval"),
    [
        ({"WATCHDOG_USEC": "60000000"}, 30.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_watchdog_interval(environ: dict[str, str], interval: float | None) -> None:
    """Half of what systemd allows, and only when this process is the one watched."""
    assert Notifier.from_environment({"NOTIFY_SOCKET": "@x", **environ}).watchdog_interval == interval


def test_taking_the_environment_leaves_nothing_to_children() -> None:
    """systemd's variables go, everything else stays."""
    environ = {**dict.fromkeys(VARIABLES, "1"), "PATH": "/bin"}
    assert take_environment(environ) == dict.fromkeys(VARIABLES, "1")
    assert environ == {"PATH": "/bin"}


# What runs in a process of its own, which inherits descriptors as from systemd: from 3 on. It says which
# sockets it found, or the error.
INHERITING = """
import json, os, sys
from appliance.core.errors import GitmirrorError
from appliance.core.daemon.systemd import inherited_sockets
environ = json.loads(sys.argv[1])
environ.setdefault("LISTEN_PID", str(os.getpid()))
try:
    found = inherited_sockets(environ, os.getpid())
except GitmirrorError as error:
    print(json.dumps([error.message, error.hint]))
else:
    print(json.dumps({name: [
        [s.getsockname()[1], s.getblocking(), s.get_inheritable()] for s in sockets
    ] for name, sockets in found.items()}))
"""


def inherit(descriptors: list[int], **environ: str) -> dict[str, list[list[object]]] | list[str]:
    """Runs INHERITING with copies of `descriptors` at 3, 4, ..."""
    # A shell puts them in place: pass_fds keeps the numbers that they have here.
    moves = " ".join(f"{number}<&{descriptor}" for number, descriptor in enumerate(descriptors, 3))
    script = f'exec "$@" {moves}' if moves else 'exec "$@"'
    done = subprocess.run(
        ["bash", "-c", script, "bash", sys.executable, "-c", INHERITING, json.dumps(environ)],
        pass_fds=descriptors,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    found: dict[str, list[list[object]]] | list[str] = json.loads(done.stdout)
    return found


@pytest.fixture
def listen() -> Iterator[Callable[[], tuple[int, int]]]:
    """Makes listening sockets: descriptor (above those the child gets) and port of each."""
    made: list[socket.socket] = []

    def make() -> tuple[int, int]:
        listening = socket.create_server(("127.0.0.1", 0))
        made.append(listening)
        return listening.fileno(), listening.getsockname()[1]

    yield make
    for listening in made:
        listening.close()


def test_sockets_come_by_name(listen: Callable[[], tuple[int, int]]) -> None:
    """A name holds for all addresses of its unit; each socket is non-blocking and closed in children."""
    (first, one), (second, two), (third, three) = listen(), listen(), listen()
    found = inherit([first, second, third], LISTEN_FDS="3", LISTEN_FDNAMES="git:http:git")
    assert found == {"git": [[one, False, False], [three, False, False]], "http": [[two, False, False]]}


def test_sockets_of_another_process_are_left_alone(listen: Callable[[], tuple[int, int]]) -> None:
    """If LISTEN_PID names another process, the variables were inherited by accident."""
    descriptor, _ = listen()
    assert inherit([descriptor], LISTEN_FDS="1", LISTEN_FDNAMES="git", LISTEN_PID="1") == {}
    assert inherited_sockets({}, os.getpid()) == {}
    assert inherited_sockets({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "0"}, os.getpid()) == {}


def test_an_unknown_name_is_an_error_that_says_it(listen: Callable[[], tuple[int, int]]) -> None:
    """Serving on a socket of unknown purpose could show the admin port to guests."""
    (first, _), (second, _) = listen(), listen()
    message, hint = inherit([first, second], LISTEN_FDS="2", LISTEN_FDNAMES="git:gti")
    assert "'gti'" in str(message)
    assert "git, http, admin" in str(hint)


@pytest.mark.parametrize("names", [{}, {"LISTEN_FDNAMES": "git:http"}])
def test_names_must_fit_the_sockets(listen: Callable[[], tuple[int, int]], names: dict[str, str]) -> None:
    """No names, or too many: nobody can say which socket is which."""
    descriptor, _ = listen()
    message, _hint = inherit([descriptor], LISTEN_FDS="1", **names)
    assert "1 of them, but LISTEN_FDNAMES is" in str(message)


def test_a_count_that_is_none_is_an_error() -> None:
    """LISTEN_FDS is a number."""
    with pytest.raises(InheritedSocketError, match="'two'"):
        inherited_sockets({"LISTEN_PID": "7", "LISTEN_FDS": "two"}, 7)


def test_a_descriptor_that_does_not_listen_is_an_error(tmp_path: Path) -> None:
    """A file, a datagram socket, a connected socket: each is refused by its name."""
    file = os.open(tmp_path, os.O_RDONLY)
    datagram = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    left, right = socket.socketpair()
    try:
        for descriptor, word in (
            (file, "cannot be used"),
            (datagram.fileno(), "stream"),
            (left.fileno(), "stream"),
        ):
            message, _hint = inherit([descriptor], LISTEN_FDS="1", LISTEN_FDNAMES="admin")
            assert "the socket for admin (descriptor 3)" in str(message)
            assert word in str(message)
    finally:
        os.close(file)
        for each in (datagram, left, right):
            each.close()


@pytest.mark.skipif(not shutil.which("systemd-socket-activate"), reason="systemd-socket-activate is not installed")
def test_sockets_of_the_real_systemd_tool(tmp_path: Path) -> None:
    """`systemd-socket-activate` hands over what it listens on, and a guest reaches it."""
    script = tmp_path / "serve.py"
    script.write_text(
        "import os\n"
        "from appliance.core.daemon.systemd import inherited_sockets\n"
        "[listening] = inherited_sockets(os.environ, os.getpid())['git']\n"
        "listening.setblocking(True)\n"
        "guest, _ = listening.accept()\n"
        "guest.sendall(b'hello')\n"
    )
    # A unix socket, since the tool does not say which port it got for port 0.
    path = Path("/tmp") / f"gitmirror-{uuid.uuid4().hex}"
    options = [f"--listen={path}", "--fdname=git", f"--setenv=PYTHONPATH={ROOT}"]
    activator = subprocess.Popen(
        ["systemd-socket-activate", *options, sys.executable, str(script)], stderr=subprocess.PIPE, text=True
    )
    try:
        assert activator.stderr is not None
        assert "Listening" in activator.stderr.readline()
        with socket.socket(socket.AF_UNIX) as guest:
            guest.settimeout(60)
            guest.connect(str(path))
            assert guest.recv(100) == b"hello"
        assert activator.wait(60) == 0
    finally:
        activator.kill()
        activator.communicate()
        path.unlink(missing_ok=True)


@pytest.fixture
def loadable_units(tmp_path: Path) -> Path:
    """The units as they are, but for the program's path: it is not installed here."""
    program = tmp_path / "gitmirror.pyz"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    folder = tmp_path / "units"
    folder.mkdir()
    for unit in UNITS:
        text = unit.read_text().replace("/usr/local/bin/gitmirror.pyz", str(program))
        (folder / unit.name).write_text(text)
    return folder


analysis = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")


@analysis
def test_units_with_other_addresses_load_too(loadable_units: Path) -> None:
    """Those of `install --listen`."""
    for unit, content in listen_drop_ins(["10.0.0.1", "::1", "unix:/run/mirror", "vsock"]).items():
        with (loadable_units / unit).open("ab") as file:
            file.write(b"\n" + content)
    units = sorted(str(path) for path in loadable_units.iterdir())
    done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("wanted", "bound", "said"),
    [
        ("127.0.0.1:9418", ["git://10.0.0.1:9418"], None),
        ("10.0.0.1:9418", ["git://10.0.0.1:9418", "git://127.0.0.1:9418"], None),
        (["10.0.0.1:9418", "unix:/run/x.sock"], ["git://10.0.0.1:9418"], "10.0.0.1:9418, unix:/run/x.sock"),
        ("", ["git://127.0.0.1:9418"], "(off)"),
    ],
)
def test_addresses_of_the_config_that_systemd_overrules_are_named(
    tmp_path: Path, wanted: str | list[str], bound: list[str], said: str | None
) -> None:
    """Where a setting differs from its default and from the sockets. Without systemd, it is what is in force."""
    config = Config(serve=ServeConfig(git=parse_listeners(wanted)))
    state = ServeState(Layout(tmp_path), config)
    state.listen("git", bound, is_inherited=False)
    assert state.overruled == []
    state.listen("git", bound, is_inherited=True)
    assert state.listening["git"] == bound
    if said is None:
        assert state.overruled == []
    else:
        [warning] = state.overruled
        assert said in warning and bound[0] in warning and "install --listen" in warning


@analysis
def test_units_load_without_a_word(loadable_units: Path) -> None:
    """`systemd-analyze verify` says nothing about the service and its sockets."""
    units = sorted(str(path) for path in loadable_units.iterdir())
    assert len(units) == 4
    done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@analysis
def test_the_service_is_confined(loadable_units: Path) -> None:
    """`systemd-analyze security` gives 2.0 or better (0 is no exposure, 10 is all)."""
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", str(loadable_units / "gitmirror.service")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "LC_ALL": "C"},
    )
    score = re.search(r"Overall exposure level for gitmirror.service: ([0-9.]+)", done.stdout)
    assert score is not None, done.stdout + done.stderr
    assert float(score[1]) <= 2.0
