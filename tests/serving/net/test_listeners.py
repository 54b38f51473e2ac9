"""Listeners with several addresses: TCP, unix sockets and vsock, from the config, the options and systemd."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.core.config.addresses import UnixAddress, VsockAddress, parse_listeners, tcp_url, url_of_listener
from appliance.core.config.settings import parse_config
from appliance.core.errors import GitmirrorError, UsageError
from appliance.core.serving.net.seats import peer_of
from appliance.core.serving.net.sockets import client_of, listen, listen_at, shown_address, try_to_listen
from appliance.core.units import Address
from tests.conftest import WIDGETS
from tests.support.gitutil import git, git_result, wait_until
from tests.support.guests import ask_unix, get_unix
from tests.support.serve import ROOT, Serve
from tests.support.unix_proxy import UnixForwarder
from tests.support.upstream import HttpUpstream


def needs_vsock() -> None:
    try:
        socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close()
    except OSError as error:
        pytest.skip(f"this kernel has no vsock: {error}")


# -- addresses --------------------------------------------------------------------------------------------------


def test_one_address_or_a_list_of_them() -> None:
    """The forms of the config file."""
    config = parse_config(
        '[serve]\ngit = ["127.0.0.1:9418", "unix:/run/g.sock", "vsock:9418"]\nhttp = "unix:/run/h.sock"\nadmin = ""\n',
        Path("x"),
    ).serve
    assert config.git == (Address("127.0.0.1", 9418), UnixAddress("/run/g.sock"), VsockAddress(9418))
    assert (config.http, config.admin) == ((UnixAddress("/run/h.sock"),), ())
    assert [str(each) for each in config.git] == ["127.0.0.1:9418", "unix:/run/g.sock", "vsock:9418"]
    assert url_of_listener(config.git[1:], "git") == "unix:/run/g.sock" and tcp_url(config.git[1:], "git") is None
    assert url_of_listener(config.git[::-1], "git") == "git://127.0.0.1:9418" and url_of_listener((), "git") is None


@pytest.mark.parametrize(
    "value",
    ["unix:", "unix:relative", "unix:/run/", "unix:/a\x07b", "vsock:", "vsock:x", "vsock:-1", "vsock:4294967295",
     "vsock:2:9418", ["127.0.0.1:1", ""], ["127.0.0.1:1", "127.0.0.1:1"], ["unix:/a", "unix:/a"], [3], 3, None,
     {"a": 1}, "9418"],
)  # fmt: skip
def test_an_address_that_is_none_is_refused(value: object) -> None:
    """Each with what is allowed."""
    with pytest.raises(ValueError, match=r"unix:|vsock:|address"):
        parse_listeners(value)


def test_any_free_port_may_be_listed_twice() -> None:
    """Port 0 is no address of its own."""
    assert len(parse_listeners(["127.0.0.1:0", "127.0.0.1:0"])) == 2


def test_a_config_error_names_the_key() -> None:
    """And says what would be right."""
    with pytest.raises(UsageError, match=r"serve\.git"):
        parse_config('[serve]\ngit = ["unix:x"]\n', Path("x"))


# -- unix sockets -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("setting", "mode"), [("git", 0o666), ("http", 0o666), ("admin", 0o660)])
def test_the_mode_of_a_unix_socket(tmp_path: Path, setting: str, mode: int) -> None:
    """Whatever the umask: the guests' are open to who may enter the directory, the operators' to the group."""
    os.umask(0o077)
    path = tmp_path / "s"
    listening, file = listen_at(UnixAddress(str(path)), setting)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert not listening.getblocking() and not listening.get_inheritable()
    file.remove()
    assert not path.exists()
    listening.close()


def test_a_path_longer_than_an_address(tmp_path: Path) -> None:
    """A unix socket's address has 107 bytes."""
    path = tmp_path / ("d" * 120) / "git.sock"
    path.parent.mkdir()
    listening, file = listen_at(UnixAddress(str(path)), "git")
    assert path.is_socket()
    file.remove()
    listening.close()


def test_what_a_killed_serve_left_is_replaced(tmp_path: Path) -> None:
    """Nobody listens there any more."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
        left.listen()
    try_to_listen(UnixAddress(str(path)), "git")
    assert path.is_socket(), "a look changes nothing"
    listening, _ = listen_at(UnixAddress(str(path)), "git")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    listening.close()


def test_what_somebody_else_has_is_left_alone(tmp_path: Path) -> None:
    """A socket on which somebody listens, a file, a link, a directory."""
    taken, text, link, folder = (tmp_path / name for name in ("taken", "text", "link", "folder"))
    text.write_text("mine")
    link.symlink_to(text)
    folder.mkdir()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(taken))
        other.listen()
        for path, words in ((taken, "another program listens"), (text, "a file"), (link, "a file"), (folder, "a file")):
            for attempt in (listen_at, try_to_listen):
                with pytest.raises(GitmirrorError, match=words):
                    attempt(UnixAddress(str(path)), "git")
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(taken))
    assert text.read_text() == "mine" and link.is_symlink() and folder.is_dir()


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    """It is named."""
    with pytest.raises(GitmirrorError, match="nowhere cannot be used: No such file"):
        listen_at(UnixAddress(str(tmp_path / "nowhere" / "s")), "http")


def test_who_comes_by_what(tmp_path: Path) -> None:
    """The log has the name of the socket's file, without what a terminal would obey."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "git\x1b.sock"))
        assert client_of(listening, "") == ("unix:git\\x1b.sock", 0)
        assert shown_address(listening, "git") == f"unix:{tmp_path}/git\\x1b.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"\0gitmirror-{os.getpid()}")
        assert shown_address(listening, "git") == f"unix:@gitmirror-{os.getpid()}"
        assert client_of(listening, b"") == (f"unix:@gitmirror-{os.getpid()}", 0)


def test_vsock_listens_for_every_cid_and_names_its_peers() -> None:
    """A peer is a CID, whatever its port."""
    needs_vsock()
    with listen(VsockAddress(0), "git") as listening:
        cid, port = listening.getsockname()
        assert cid == socket.VMADDR_CID_ANY and shown_address(listening, "git") == f"vsock:{port}"
        assert client_of(listening, (7, 1025)) == ("vsock:7", 1025)
        assert peer_of("vsock:7") == peer_of("vsock:7") != peer_of("vsock:8")
        with pytest.raises(GitmirrorError, match=f"cannot listen on vsock:{port}"):
            listen(VsockAddress(port), "git")


@pytest.mark.slow
def test_a_clone_over_vsock() -> None:
    """By the loopback of vsock, where the kernel has one."""
    needs_vsock()
    with listen(VsockAddress(0), "git") as listening, socket.socket(socket.AF_VSOCK) as client:
        client.settimeout(1)
        try:
            client.connect((1, listening.getsockname()[1]))
        except OSError as error:
            pytest.skip(f"vsock has no loopback here (vsock_loopback): {error}")
        listening.setblocking(True)
        _, address = listening.accept()
        assert client_of(listening, address)[0] == "vsock:1"


# -- a serve that has them all ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, generated_bare: Path) -> Iterator[Serve]:
    """A `serve` that listens on TCP and at paths."""
    top = tmp_path_factory.mktemp("many")
    with HttpUpstream(top / "upstream") as upstream:
        upstream.add(WIDGETS, generated_bare)
        options = [f"--git=unix:{top}/git.sock", "--git=127.0.0.1:0", "--git=127.0.0.1:0", "--http=127.0.0.1:0",
                   f"--http=unix:{top}/http.sock", f"--admin=unix:{top}/admin.sock"]  # fmt: skip
        with Serve(
            top / "state",
            repos=[upstream.url(WIDGETS)],
            options=options,
            refresh={"interval": "1h", "stale_after": "1d"},
        ) as serve:
            serve.start()
            serve.wait_for_repo(WIDGETS)
            yield serve


def test_the_first_tcp_address_is_the_listeners(many: Serve) -> None:
    """The ready line and `status` show it, and `listeners` all of them; `status` has a warning about none."""
    status, top = many.status(), many.state.parent
    assert many.ready is not None and status["git"] == many.ready.git and status["http"] == many.ready.http
    assert status["admin"] == f"unix:{top}/admin.sock"
    assert status["listeners"]["git"][0] == many.ready.git and len(status["listeners"]["git"]) == 3
    assert status["listeners"]["git"][2] == f"unix:{top}/git.sock"
    assert status["listeners"]["http"] == [many.ready.http, f"unix:{top}/http.sock"]
    assert f"admin unix:{top}/admin.sock" in (many.state.with_name("state.out")).read_text()
    assert not status["warnings"]
    for url in status["listeners"]["git"][:2]:
        assert git("ls-remote", f"{url}/{WIDGETS}", "HEAD")
    entries = many.here("egress").split()
    assert entries == [each.split("//")[1] for each in (many.ready.git, many.ready.http) if each]


@pytest.mark.slow
def test_guests_at_paths(many: Serve, tmp_path: Path) -> None:
    """Clones, pushes and pages; the log names the socket."""
    top = many.state.parent
    with UnixForwarder(top / "git.sock") as git_port, UnixForwarder(top / "http.sock") as http_port:
        git("clone", "--quiet", f"git://127.0.0.1:{git_port.port}/{WIDGETS}", str(tmp_path / "one"))
        git("clone", "--quiet", f"http://127.0.0.1:{http_port.port}/{WIDGETS}", str(tmp_path / "two"))
        git("push", "--quiet", f"git://127.0.0.1:{git_port.port}/{WIDGETS}", "HEAD:refs/agents/s", cwd=tmp_path / "one")
        code, _, said = git_result(
            "push", f"http://127.0.0.1:{http_port.port}/{WIDGETS}", "HEAD:refs/heads/new", cwd=tmp_path / "two"
        )
        assert code and "refs/agents" in said
    assert {row["client"] for row in many.cli_json("audit")} == {"unix:git.sock", "unix:http.sock"}
    wait_until(
        lambda: {row["client"] for row in many.cli_json("activity")} == {"unix:git.sock", "unix:http.sock"},
        message="both clones are in the log",
    )
    assert get_unix(top / "admin.sock", "/healthz")[0] == 200


def test_the_kit_at_a_path_has_the_host_that_was_asked(many: Serve) -> None:
    """Over TCP it has the listeners' own addresses."""
    path = many.state.parent / "http.sock"
    kit = get_unix(path, "/guest.sh", "10.0.0.1:8080")[1]
    assert "gitmirror__http='http://10.0.0.1:8080'\n" in kit and "gitmirror__git='git://10.0.0.1:9418'\n" in kit
    for host in ("a'; touch /tmp/x; '", "a b", "$(id)", "[::1", "x" * 300, "a:999999", ""):
        kit = get_unix(path, "/guest.sh", host)[1]
        assert f"gitmirror__http='{many.http_url}'\n" in kit or "malformed" in kit, host


@pytest.mark.slow
def test_sockets_are_gone_with_their_serve(many: Serve) -> None:
    """And a killed one's are replaced by the next."""
    top = many.state.parent
    many.kill()
    assert (top / "git.sock").is_socket()
    many.start()
    assert get_unix(top / "http.sock", "/healthz")[0] == 200
    assert many.terminate() == 0
    assert not [path.name for path in top.glob("*.sock")]
    many.start()


# -- systemd ----------------------------------------------------------------------------------------------------

LAUNCH = """
import json, os, sys
sockets = json.loads(sys.argv[1])
for number, (name, descriptor) in enumerate(sockets, 100):
    os.dup2(descriptor, number)
for number in range(len(sockets)):
    os.dup2(number + 100, number + 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(sockets)))
os.environ["LISTEN_FDNAMES"] = ":".join(name for name, _ in sockets)
os.execv(sys.executable, [sys.executable, "-m", "appliance", *sys.argv[2:]])
"""


@pytest.mark.slow
def test_inherited_unix_sockets_serve(tmp_path: Path) -> None:
    """They were printed as git:///:t, and every guest was dropped. Several of a name are one listener."""
    state = Serve(tmp_path / "state")
    held: list[tuple[str, socket.socket]] = []
    for name in ("git", "git", "http"):
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(tmp_path / f"{name}{len(held)}.sock"))
        listening.listen()
        held.append((name, listening))
    admin = socket.create_server(("127.0.0.1", 0))
    held.append(("admin", admin))
    named = json.dumps([(name, each.fileno()) for name, each in held])
    argv = [sys.executable, "-c", LAUNCH, named, "--state", str(tmp_path / "state"), "--config", str(state.config)]
    process = subprocess.Popen(
        [*argv, "serve"], cwd=ROOT, env=state.env, stdout=subprocess.PIPE, pass_fds=[each.fileno() for _, each in held]
    )
    try:
        assert process.stdout is not None
        ready = process.stdout.readline().decode()
        expected = f"git unix:{tmp_path}/git0.sock http unix:{tmp_path}/http2.sock"
        assert ready == f"ready {expected} admin http://127.0.0.1:{admin.getsockname()[1]}\n"
        for path in ("git0.sock", "git1.sock"):
            request = b"git-upload-pack /a/b\0host=x\0"
            assert b"ERR" in ask_unix(tmp_path / path, b"%04x" % (len(request) + 4) + request)
        assert get_unix(tmp_path / "http2.sock", "/healthz") == (200, "ok\n")
        assert state.status()["git"] == f"unix:{tmp_path}/git0.sock"
        kit = get_unix(tmp_path / "http2.sock", "/guest.sh", "localhost")[1]
        assert "gitmirror__git='git://localhost:9418'" in kit
        assert "gitmirror__git=''\n" in state.here("guest-kit"), "git takes no path for a URL"
        assert state.here("egress") == ""
    finally:
        process.terminate()
        process.wait(60)
        state.close()
        for _, each in held:
            each.close()
    assert (tmp_path / "git0.sock").is_socket(), "the file is systemd's"
