"""Deliveries: each ends in time, whatever the other side does, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance.core.observability import delivery as outlets
from appliance.core.observability.delivery import OutletError, post, run_command
from appliance.core.process.children import Children, take_lock
from tests.observability.outlets import catching
from tests.support.gitutil import wait_until
from tests.support.processes import processes_of
from tests.support.tls import TlsFront, make_certificate


@pytest.fixture
def children(tmp_path: Path) -> Iterator[Children]:
    """Children of this test, in a directory of their own."""
    lock = take_lock(tmp_path / "lock", inheritable=True)
    yield Children(tmp_path / "children", lock)
    os.close(lock)


def test_a_command_gets_the_document_and_its_environment(children: Children, tmp_path: Path) -> None:
    """All of it on stdin, however long, to its end."""
    document = os.urandom(300_000)
    argv = ["/bin/sh", "-c", f'cat >{tmp_path}/got; echo "$WORD" >>{tmp_path}/word']
    asyncio.run(run_command(children, argv, document, {"WORD": "it's here", "PATH": os.defpath}))
    assert (tmp_path / "got").read_bytes() == document
    assert (tmp_path / "word").read_text() == "it's here\n"


@pytest.mark.slow
def test_a_command_that_hangs_is_ended_with_all_it_started(
    children: Children, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when it ignores SIGTERM and has left a child behind."""
    monkeypatch.setattr(outlets, "DEADLINE", 0.3)
    script = tmp_path / "hang"
    script.write_text("trap '' TERM\nsleep 1000 &\nwhile :; do wait; done\n")
    with pytest.raises(OutletError, match="took longer than"):
        asyncio.run(run_command(children, ["/bin/sh", str(script)], b"x", {"PATH": os.defpath}))
    wait_until(lambda: not processes_of(tmp_path), message="all have ended")
    assert len(children) == 0


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["/nowhere/page"], "cannot be started: No such file"),
        (["/bin/sh", "-c", "exit 3"], "ended with code 3"),
        (["/bin/sh", "-c", "kill -9 $$"], "ended with code -9"),
    ],
)
def test_a_command_that_fails_is_told(children: Children, argv: list[str], words: str) -> None:
    """In words, with its name."""
    with pytest.raises(OutletError, match=words):
        asyncio.run(run_command(children, argv, b"x", {"PATH": os.defpath}))


def test_a_post_is_taken_with_2xx_and_nothing_else() -> None:
    """A redirect is not followed; an error names the host, not the path."""
    with catching() as catcher:
        asyncio.run(post(catcher.url, b'{"a": 1}'))
        assert catcher.bodies == [{"a": 1}]
        for status in (302, 404, 500):
            catcher.status = status
            with pytest.raises(OutletError, match=f"^127.0.0.1 answered {status}$"):
                asyncio.run(post(catcher.url, b'{"a": 2}'))
        url = catcher.url
    assert catcher.bodies == [{"a": 1}]
    with pytest.raises(OutletError, match="cannot be reached"):
        asyncio.run(post(url, b"{}"))


def _hang(connection: socket.socket) -> None:
    while connection.recv(65536):
        pass


def _drip(connection: socket.socket) -> None:
    while True:
        connection.sendall(b"H")
        time.sleep(0.02)


def _babble(connection: socket.socket) -> None:
    connection.sendall(b"220 mail.example ESMTP\r\n\r\n" * 5000)


def _leave(connection: socket.socket) -> None:
    connection.recv(10)


def _flood(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000)


@pytest.mark.parametrize("answer", [_hang, _drip, _babble, _leave, _flood])
def test_a_server_that_misbehaves_is_left_in_time(
    answer: Callable[[socket.socket], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is silent, slow, sends nonsense or too much, or closes the connection."""
    monkeypatch.setattr(outlets, "DEADLINE", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection, contextlib.suppress(OSError):
                answer(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with pytest.raises(OutletError, match=r"127\.0\.0\.1 (cannot be reached|did not respond)"):
            asyncio.run(post(f"http://127.0.0.1:{listening.getsockname()[1]}/secret", b"{}"))
        thread.join(60)
        assert not thread.is_alive(), "it is not left"


def test_an_https_url_is_checked(tmp_path: Path) -> None:
    """An alert is not sent to a server whose certificate is not trusted."""
    with catching() as catcher:
        port = int(catcher.url.rsplit(":", 1)[1].partition("/")[0])
        own = make_certificate(tmp_path, "own")
        with TlsFront(port, own) as front, pytest.raises(OutletError, match="certificate"):
            asyncio.run(post(front.url("hook"), b"{}"))
        assert catcher.bodies == []
