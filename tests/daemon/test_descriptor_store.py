"""Guests' sockets live through a restart of `serve`: the service manager keeps them."""

from __future__ import annotations

import os
import resource
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.core.daemon.descriptor_store import DescriptorStore
from tests.support.gitutil import wait_until
from tests.support.guests import add_guest, connect_unix, get_unix, guests_of, remove_guest
from tests.support.serve import Serve
from tests.support.service_manager import ServiceManager


class Caller:
    """Connects again and again, each time for one page; `refused` has what went wrong."""

    def __init__(self, path: Path) -> None:
        self.refused: list[str] = []
        self.served = 0
        self._path = path
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.wait(0.005):
            try:
                assert get_unix(self._path, "/healthz")[0] == 200
                self.served += 1
            except (OSError, AssertionError, IndexError, ValueError) as error:
                self.refused.append(repr(error))

    def wait_past(self, served: int) -> None:
        wait_until(lambda: self.served > served, message="it is served again")

    def end(self) -> None:
        self._ended.set()
        self._thread.join(60)


@pytest.mark.slow
def test_none_is_refused_while_serve_restarts(serve_factory: Callable[..., Serve], tmp_path: Path) -> None:
    """Neither after SIGTERM nor after a kill. A removed guest's socket is kept by nobody."""
    with ServiceManager(serve_factory()) as manager:
        manager.start()
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            add_guest(manager.serve, name, unix=str(tmp_path / name / "v"))
        wait_until(lambda: len(manager.kept) == 4, message="four sockets are kept")
        inode = (tmp_path / "a" / "v_9419").stat().st_ino
        caller = Caller(tmp_path / "a" / "v_9419")
        wait_until(lambda: caller.served, message="it is served")
        for end in (manager.stop, manager.kill):
            end()
            served = caller.served
            manager.start()
            caller.wait_past(served + 1)
            assert end == manager.kill or caller.refused == []
        caller.end()
        assert len(caller.refused) <= 1, "a kill may cut one connection"
        assert (tmp_path / "a" / "v_9419").stat().st_ino == inode and len(manager.kept) == 4
        assert guests_of(manager.serve)["a"]["problem"] is None
        remove_guest(manager.serve, "a")
        wait_until(lambda: len(manager.kept) == 2, message="its sockets are dropped")
        assert not list((tmp_path / "a").iterdir())


@pytest.mark.slow
def test_a_kept_socket_is_used_only_for_its_own_file(serve_factory: Callable[..., Serve], tmp_path: Path) -> None:
    """What took its place meanwhile is left alone, and the kept one refuses connections and is dropped."""
    with ServiceManager(serve_factory()) as manager:
        manager.start()
        for name in ("gone", "taken", "moved"):
            (tmp_path / name).mkdir()
            add_guest(manager.serve, name, unix=str(tmp_path / name / "v"))
        wait_until(lambda: len(manager.kept) == 6, message="the sockets are kept")
        manager.kill()
        for path in (tmp_path / "gone").iterdir():
            path.unlink()
        (tmp_path / "taken" / "v_9418").unlink()
        (tmp_path / "taken" / "v_9418").write_text("mine")
        (tmp_path / "moved" / "v_9419").rename(tmp_path / "moved" / "elsewhere")
        manager.start()
        assert get_unix(tmp_path / "gone" / "v_9419", "/healthz")[0] == 200
        assert get_unix(tmp_path / "moved" / "v_9419", "/healthz")[0] == 200
        assert (tmp_path / "taken" / "v_9418").read_text() == "mine"
        assert "is there already" in guests_of(manager.serve)["taken"]["problem"]
        with pytest.raises(ConnectionRefusedError):
            connect_unix(tmp_path / "moved" / "elsewhere")
        wait_until(lambda: len(manager.kept) == 4, message="only sockets in use are kept")


@pytest.mark.slow
def test_a_thousand_guests_wait_for_a_restart(serve_factory: Callable[..., Serve], tmp_path: Path) -> None:
    """2,000 sockets: it takes about a second, none is refused, and each of them is the one that it was."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] < 16384:
        pytest.skip(f"needs 16,384 open files, and {before[1]} are allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (16384, before[1]))
    try:
        with ServiceManager(serve_factory()) as manager:
            manager.start()
            for number in range(1000):
                add_guest(manager.serve, f"vm-{number}", unix=str(tmp_path / f"v{number}"))
            wait_until(lambda: len(manager.kept) == 2000, message="their sockets are kept")
            caller = Caller(tmp_path / "v999_9419")
            wait_until(lambda: caller.served, message="it is served")
            began = time.monotonic()
            manager.stop()
            manager.start()
            took = time.monotonic() - began
            caller.wait_past(caller.served + 1)
            caller.end()
            assert caller.refused == [] and len(manager.kept) == 2000
            assert not [guest for guest in guests_of(manager.serve).values() if guest["problem"]]
            # A hang is told apart from a busy machine; scripts/bench_guests.py has the figures.
            assert took < 20
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_full_queue_is_tried_again(tmp_path: Path) -> None:
    """Nothing blocks, and nothing is lost."""
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, socket.socket() as listening:
        manager.bind(path)
        store = DescriptorStore.from_environment({"NOTIFY_SOCKET": path, "FDSTORE": "4"})
        assert store is not None
        sent = 0
        while store.keep(f"guest-{sent}", listening):
            sent += 1
        store.drop("guest-0")
        for number in range(sent):
            data, descriptors, _, _ = socket.recv_fds(manager, 4096, 4)
            assert data == b"FDSTORE=1\nFDNAME=guest-%d" % number and len(descriptors) == 1
            os.close(descriptors[0])
        assert store.keep("last", listening)
        assert manager.recv(4096) == b"FDSTOREREMOVE=1\nFDNAME=guest-0"
        assert manager.recv(4096) == b"FDSTORE=1\nFDNAME=last"


@pytest.mark.parametrize(
    "environ", [{}, {"NOTIFY_SOCKET": "/x"}, {"NOTIFY_SOCKET": "/x", "FDSTORE": "0"}, {"FDSTORE": "5"},
                {"NOTIFY_SOCKET": "/x", "FDSTORE": "many"}, {"NOTIFY_SOCKET": "vsock:2:1", "FDSTORE": "5"}]
)  # fmt: skip
def test_a_manager_that_keeps_nothing(environ: dict[str, str]) -> None:
    """Then `serve` removes its sockets when it ends."""
    assert DescriptorStore.from_environment(environ) is None
