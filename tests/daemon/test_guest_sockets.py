"""The sockets of known guests: whose they are, what is in the way of them, kills, and removal."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.core.config.settings import GuestsConfig
from appliance.core.errors import GitmirrorError
from appliance.core.layout import Layout
from appliance.core.models import Guest
from appliance.core.node.guests import remove_alone
from appliance.core.node.state_dir import open_stores
from appliance.core.serving.net.guest_sockets import GuestSockets
from appliance.core.store.guests import GuestOrder
from tests.conftest import WIDGETS
from tests.support.gitutil import commit_files, git, git_result, wait_until
from tests.support.guests import add_guest, connect_unix, get_unix, guests_of, remove_guest
from tests.support.serve import Serve
from tests.support.unix_proxy import UnixForwarder
from tests.support.upstream import HttpUpstream

SETTLED = {"interval": "1h", "stale_after": "1d"}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, generated_bare: Path) -> Iterator[Serve]:
    """One `serve` for the tests of this module."""
    top = tmp_path_factory.mktemp("guests")
    with HttpUpstream(top / "upstream") as upstream:
        upstream.add(WIDGETS, generated_bare)
        with Serve(top / "state", repos=[upstream.url(WIDGETS)], refresh=SETTLED) as serve:
            serve.start()
            serve.wait_for_repo(WIDGETS)
            yield serve


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def alive(path: Path | str) -> bool:
    """Whether an HTTP listener answers there."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        return get_unix(path, "/healthz")[0] == 200
    return False


def test_a_guest_comes_by_its_sockets(node: Serve, tmp_path: Path) -> None:
    """Through a forwarder like Firecracker's, at a path longer than an address; the log knows it by name."""
    directory = tmp_path / ("long" * 30)
    directory.mkdir()
    added = add_guest(node, "vm-1", sessions=["fix"], unix=str(directory / "v.sock"))
    assert added["problem"] is None and files(directory) == ["v.sock_9418", "v.sock_9419"]
    for name in files(directory):
        status = (directory / name).stat()
        assert (stat.S_IMODE(status.st_mode), status.st_gid) == (0o660, os.getegid())
    with contextlib.ExitStack() as stack:
        path = tmp_path / "s"
        path.symlink_to(directory)
        git_end = stack.enter_context(UnixForwarder(path / "v.sock_9418"))
        http_end = stack.enter_context(UnixForwarder(path / "v.sock_9419"))
        url = f"git://127.0.0.1:{git_end.port}/{WIDGETS}"
        git("clone", "--quiet", url, str(tmp_path / "work"))
        git("clone", "--quiet", f"http://127.0.0.1:{http_end.port}/{WIDGETS}", str(tmp_path / "other"))
        commit_files(tmp_path / "work", {"x": "1\n"}, "a turn")
        git("push", "--quiet", url, "HEAD:refs/agents/fix", cwd=tmp_path / "work")
        assert git_result("push", url, "HEAD:refs/agents/other", cwd=tmp_path / "work")[0]
    rows = node.cli_json("audit")
    assert {(row["guest"], row["client"]) for row in rows} == {("vm-1", "unix:vm-1")}
    assert remove_guest(node, "vm-1")["name"] == "vm-1"
    assert files(directory) == []


def test_what_is_in_the_way_is_said_at_once(node: Serve, tmp_path: Path) -> None:
    """And then the guest is not known, nothing is left, and what was there is as it was."""
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "taken_9419").write_text("mine")
    (tmp_path / "dangling_9418").symlink_to(tmp_path / "nothing")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead_9418"))
    before = files(tmp_path)
    for place, words in [
        ("nowhere/v", "nowhere cannot be used: No such file"),
        ("link/v", "symbolic link"),
        ("taken_9419/v", "cannot be used: Not a directory"),
        ("taken", "taken_9419 is there already"),
        ("dangling", "dangling_9418 is there already"),
        ("dead", "dead_9418 is there already"),
        ("x" * 253, "File name too long"),
    ]:
        with pytest.raises(GitmirrorError, match=words) as caught:
            add_guest(node, "vm-2", unix=str(tmp_path / place))
        assert caught.value.hint, place
        assert "vm-2" not in guests_of(node)
        assert files(tmp_path) == before, place
    assert (tmp_path / "taken_9419").read_text() == "mine"


@pytest.mark.slow
def test_a_socket_that_somebody_removed_comes_back(node: Serve, tmp_path: Path) -> None:
    """`guests` and `status` say why not as long as it cannot; the directory may be another one by then."""
    directory = tmp_path / "vm"
    directory.mkdir()
    add_guest(node, "vm-3", unix=str(directory / "v"))
    directory.rename(tmp_path / "old")
    # At first that it was removed, and then why it cannot be made again.
    told = lambda: "No such file" in (guests_of(node)["vm-3"]["problem"] or "")  # noqa: E731
    wait_until(told, timeout=60, message="the problem is told")
    assert any("vm-3" in warning for warning in node.status()["warnings"])
    assert files(tmp_path / "old") == [], "ours is removed wherever its directory is"
    directory.mkdir()
    wait_until(lambda: guests_of(node)["vm-3"]["problem"] is None, timeout=60, message="it is open again")
    assert alive(directory / "v_9419") and not node.status()["warnings"]
    remove_guest(node, "vm-3")
    assert files(directory) == []


def test_a_strangers_file_is_never_removed(node: Serve, tmp_path: Path) -> None:
    """Not even where ours was."""
    add_guest(node, "vm-4", unix=str(tmp_path / "v"))
    (tmp_path / "v_9418").unlink()
    (tmp_path / "v_9418").write_text("mine")
    (tmp_path / "v_9419").rename(tmp_path / "moved")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "v_9419"))
        remove_guest(node, "vm-4")
        assert files(tmp_path) == ["moved", "v_9418", "v_9419"]


def ends_within(connection: socket.socket, seconds: float = 20.0) -> bool:
    """Whether the peer ends a connection in time."""
    until = time.monotonic() + seconds
    connection.settimeout(seconds)
    with contextlib.suppress(ConnectionError):
        while time.monotonic() < until:
            if not connection.recv(65536):
                return True
        return False
    return True


def test_removal_ends_every_connection(node: Serve, tmp_path: Path) -> None:
    """Of a guest by socket, by address and by token, during a request and between two; and of nobody else."""
    token = add_guest(node, "tok", token=True)["token"]
    add_guest(node, "vm-5", unix=str(tmp_path / "v"))
    keep = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    known = f"GET /{WIDGETS}/freshness HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
    host = node.http_url.split("//")[1].split(":")
    open_ends: dict[str, list[socket.socket]] = {"vm-5": [], "tok": [], "none": []}
    for name, request in (("tok", known), ("none", keep)):
        connection = socket.create_connection((host[0], int(host[1])), timeout=60)
        connection.sendall(request)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        open_ends[name].append(connection)
    by_socket = connect_unix(tmp_path / "v_9419")
    by_socket.sendall(keep)
    assert by_socket.recv(65536)
    fetching = connect_unix(tmp_path / "v_9418")
    request = f"git-upload-pack /{WIDGETS}\0host=x\0".encode()
    fetching.sendall(b"%04x" % (len(request) + 4) + request)
    assert fetching.recv(65536)
    silent = connect_unix(tmp_path / "v_9418")
    open_ends["vm-5"] += [by_socket, fetching, silent]
    for name in ("tok", "vm-5"):
        remove_guest(node, name)
        assert all(ends_within(connection) for connection in open_ends[name]), name
    open_ends["none"][0].sendall(keep)
    assert open_ends["none"][0].recv(65536).startswith(b"HTTP/1.1 200")
    assert files(tmp_path) == []
    for connection in [each for ends in open_ends.values() for each in ends]:
        connection.close()


@pytest.mark.slow
def test_the_end_of_a_guests_time(node: Serve, tmp_path: Path) -> None:
    """Its sockets and connections go by themselves."""
    add_guest(node, "short", unix=str(tmp_path / "v"), ttl=5)
    connection = connect_unix(tmp_path / "v_9418")
    wait_until(lambda: files(tmp_path) == [], timeout=60, message="its sockets are gone")
    assert ends_within(connection) and "short" not in guests_of(node)
    connection.close()


def test_the_kit_of_a_guest(node: Serve, tmp_path: Path) -> None:
    """It has the addresses of its forwarder, and with `only` none but its own repositories."""
    add_guest(node, "vm-6", unix=str(tmp_path / "all"))
    add_guest(node, "vm-7", unix=str(tmp_path / "only"), only=True)
    kit = get_unix(tmp_path / "all_9419", "/guest.sh", "127.0.0.1:9419")[1]
    assert "gitmirror__git='git://127.0.0.1:9418'\n" in kit and "gitmirror__http='http://127.0.0.1:9419'\n" in kit
    assert f"{WIDGETS} http" in kit
    kit = get_unix(tmp_path / "only_9419", "/guest.sh", "localhost:80")[1]
    assert f"{WIDGETS} http" not in kit and "gitmirror__http='http://localhost:80'\n" in kit
    remove_guest(node, "vm-6")
    remove_guest(node, "vm-7")


@pytest.mark.slow
def test_after_a_restart_and_after_a_kill(serve_factory: Callable[..., Serve], tmp_path: Path) -> None:
    """A guest that cannot come does not stop the others; a graceful end leaves no file, and a kill none for long."""
    serve = serve_factory().start()
    places = [tmp_path / name for name in ("a", "b")]
    for place in places:
        place.mkdir()
        add_guest(serve, place.name, unix=str(place / "v"))
    serve.kill()
    assert files(places[0]) == ["v_9418", "v_9419"]
    (places[1] / "v_9418").unlink()
    (places[1] / "v_9418").write_text("a stranger's")
    serve.start()
    assert alive(places[0] / "v_9419")
    assert guests_of(serve)["a"]["problem"] is None
    assert "is there already" in guests_of(serve)["b"]["problem"]
    (places[1] / "v_9418").unlink()
    wait_until(lambda: guests_of(serve)["b"]["problem"] is None, timeout=30, message="it is tried again")
    assert alive(places[1] / "v_9419")
    assert serve.terminate() == 0
    assert files(places[0]) == files(places[1]) == []


@pytest.mark.slow
def test_a_broken_database(serve_factory: Callable[..., Serve], tmp_path: Path) -> None:
    """Guests that are known stay so while it is broken. After a start without it, `status` says what is lost."""
    serve = serve_factory().start()
    place = tmp_path / "vm"
    place.mkdir()
    add_guest(serve, "vm-8", unix=str(place / "v"))
    database = Layout(serve.state).database
    serve.terminate()
    whole = database.read_bytes()
    database.write_bytes(b"no database" * 1000)
    for name in ("-wal", "-shm"):
        database.with_name(database.name + name).unlink(missing_ok=True)
    serve.start()
    assert any("the known guests cannot be read" in warning for warning in serve.status()["warnings"])
    assert files(place) == []
    serve.kill()
    database.write_bytes(whole)
    serve.start()
    assert alive(place / "v_9419") and not serve.status()["warnings"]


# -- kills at every step ----------------------------------------------------------------------------------------


STEPS = [*((step, count) for step in ("bind", "listen", "link", "unlink") for count in (1, 2)), ("remember", 1)]
"""What is done for each of the two sockets, and for both at once."""


def sockets_of(layout: Layout, settings: GuestsConfig | None = None) -> tuple[Any, GuestSockets]:
    store = open_stores(layout, create=True).guests
    return store, GuestSockets({}, store.note_sockets, lambda: settings or GuestsConfig())


@pytest.mark.parametrize("by_command", [False, True], ids=["start", "remove"])
@pytest.mark.parametrize("at", STEPS, ids=str)
def test_a_kill_at_each_step_leaves_nothing(tmp_path: Path, at: tuple[str, int], by_command: bool) -> None:
    """A child is killed after the step; the next start opens the sockets and removes every trace of the first.

    So does `guest remove` without a start.
    """
    layout = Layout(tmp_path / "state")
    layout.state.mkdir()
    place = tmp_path / "vm"
    place.mkdir()
    store, sockets = sockets_of(layout)
    guest, _ = store.add(GuestOrder("vm", unix=str(place / "v")))
    (place / "stranger").write_text("mine")
    child = os.fork()
    if child == 0:
        try:
            _, doomed = sockets_of(layout)
            _kill_after(doomed, *at)
            doomed.open([guest], {})
        finally:
            os._exit(9)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), status
    if by_command:
        remove_alone(open_stores(layout), "vm")
        assert files(place) == ["stranger"]
        return
    made, problems = sockets.open([guest], store.sockets())
    assert not problems
    assert files(place) == ["stranger", "v_9418", "v_9419"]
    for each in made[guest.id]:
        connect_unix(each.path).close()
        each.file.remove()
        each.listening.close()
    assert files(place) == ["stranger"]


def _kill_after(sockets: GuestSockets, step: str, count: int) -> None:
    """Makes this process kill itself when a step is done for the `count`th time."""
    left = [count]

    def after(do: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **options: Any) -> Any:
            result = do(*args, **options)
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return wrapped

    if step == "remember":
        sockets._remember = after(sockets._remember)
    elif step in ("bind", "listen"):
        kind = type("Doomed", (socket.socket,), {step: after(getattr(socket.socket, step))})
        socket.socket = kind  # type: ignore[misc, assignment]
    else:
        setattr(os, step, after(getattr(os, step)))


def test_directories_that_are_allowed(tmp_path: Path) -> None:
    """Where the directory really is counts."""
    layout = Layout(tmp_path / "state")
    layout.state.mkdir()
    inside, outside = tmp_path / "fc", tmp_path / "else"
    for each in (inside, outside, inside / "vm"):
        each.mkdir()
    (inside / "trick").symlink_to(outside)
    store, sockets = sockets_of(layout, GuestsConfig(socket_directories=(str(inside),)))

    def problem(place: Path, name: str) -> str | None:
        guest: Guest = store.add(GuestOrder(name, unix=str(place)))[0]
        made, problems = sockets.open([guest], {})
        for each in made.get(guest.id, []):
            each.file.remove()
            each.listening.close()
        return problems[guest.id].message if problems else None

    assert problem(inside / "v", "a") is None and problem(inside / "vm" / "v", "b") is None
    assert "outside [guests] socket_directories" in str(problem(outside / "v", "c"))
    assert "symbolic link" in str(problem(inside / "trick" / "v", "d"))
    (outside / "deep").mkdir()
    assert "outside [guests]" in str(problem(inside / "trick" / "deep" / "v", "e"))
    assert files(outside) == ["deep"] and files(outside / "deep") == []


def test_a_group_that_is_not_there(tmp_path: Path) -> None:
    """The error names the setting."""
    layout = Layout(tmp_path / "state")
    layout.state.mkdir()
    store, sockets = sockets_of(layout, GuestsConfig(socket_group="no-such-group"))
    guest = store.add(GuestOrder("a", unix=str(tmp_path / "v")))[0]
    _, problems = sockets.open([guest], {})
    assert "there is no group no-such-group" in problems[guest.id].message
    assert "socket_group" in problems[guest.id].hint
