"""The control socket itself: where it is, who may open it, and who is answered on it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
from pathlib import Path
from typing import Any

import pytest

from appliance.core.api.client import Watch, call
from appliance.core.daemon.api_socket import ApiSocket, api_handler
from appliance.core.errors import GitmirrorError
from appliance.core.layout import Layout
from appliance.core.process.control_socket import is_serving, short_name
from appliance.core.serving.net.seats import Seats
from tests.api.server import ApiServer
from tests.api.wire import Wire, request


def test_a_request_is_answered_across_a_path_of_any_length(layout: Layout, server: ApiServer) -> None:
    """The kernel's limit is 107 bytes; any text goes both ways."""
    assert is_serving(layout)
    document: dict[str, Any] = {"url": "https://h/ö\n\0", "number": 1.5, "list": [{}], "deep": {"none": None}}
    assert call(layout, "POST", "/v1/echo", document) == document


def test_only_user_and_group_may_ask(server: ApiServer) -> None:
    """Mode 0660, whatever the umask; the umask is as before."""
    assert stat.S_IMODE(server.path.stat().st_mode) == 0o660
    assert stat.S_ISSOCK(server.path.stat().st_mode)
    before = os.umask(0)
    os.umask(before)
    assert before != 0o117


def test_a_socket_that_a_killed_serve_left_is_replaced(layout: Layout) -> None:
    """Binding over it would fail for ever."""
    with socket.socket(socket.AF_UNIX) as left, short_name(layout.control_socket) as name:
        left.bind(name)
    assert layout.control_socket.exists()
    server = ApiServer(layout)
    assert call(layout, "POST", "/v1/echo", {"a": 1}) == {"a": 1}
    server.close()
    assert not layout.control_socket.exists()


def test_a_socket_elsewhere_is_found_by_the_owners_word(layout: Layout, tmp_path: Path) -> None:
    """Under systemd it is in the runtime directory."""
    (tmp_path / "runtime").mkdir()
    server = ApiServer(layout, tmp_path / "runtime" / "control.sock")
    assert call(layout, "POST", "/v1/echo", {"a": 1}) == {"a": 1}
    server.close()


def test_a_place_where_it_cannot_be_is_an_error_in_words(server: ApiServer, tmp_path: Path) -> None:
    """For example in a missing directory."""

    async def start() -> None:
        handler = api_handler(server.application, is_operator=True)
        await ApiSocket(tmp_path / "missing" / "control.sock", handler).start()

    with pytest.raises(GitmirrorError, match=r"control\.sock cannot be created"):
        asyncio.run(start())


def test_who_says_nothing_or_half_a_word_keeps_nobody_out(layout: Layout, server: ApiServer) -> None:
    """Not even when it stops."""
    silent = [Wire(server.path) for _ in range(50)] + [Wire(server.path).say(b"GET /v1/qu") for _ in range(50)]
    assert call(layout, "GET", "/v1/query") == {}
    server.run(server.socket.stop())
    for wire in silent:
        assert wire.is_ended()
        wire.close()


# An older gitmirror.pyz spoke lines of JSON


def old_call(server: ApiServer, command: str, **arguments: Any) -> Any:
    """Asks as the `call` of an older file did."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        with short_name(server.path) as name:
            connection.connect(name)
        connection.sendall(json.dumps({"command": command, "arguments": arguments}).encode() + b"\n")
        with connection.makefile("rb") as answers:
            for line in answers:
                answer = json.loads(line)
                if "progress" in answer:
                    continue
                if "error" in answer:
                    raise GitmirrorError(**answer["error"])
                return answer["result"]
    raise AssertionError("no line came")


@pytest.mark.parametrize("size", [0, 150_000])
def test_an_older_file_is_told_that_it_is_older(server: ApiServer, size: int) -> None:
    """In one line that it understands, also for a line that is longer than one read of a socket."""
    with pytest.raises(GitmirrorError, match=r"^this gitmirror.pyz is older than the running serve$") as caught:
        old_call(server, "refresh", names=["x" * size])
    assert (caught.value.exit_code, caught.value.hint) == (4, "use the file that serve runs from")


def test_the_live_view_of_an_older_file_gets_no_events(server: ApiServer) -> None:
    """It reads one line, finds no `watching` in it, and says that the version is another."""
    with Wire(server.path) as wire:
        wire.say(b'{"command": "watch"}\n')
        answer = wire.socket.makefile("rb").read()
        assert answer.count(b"\n") == 1
        assert "watching" not in json.loads(answer)


NONSENSE = [b"nonsense\n\n", b"\xff\xfe\n\n", b"[]\n\n", b"1\n\n", b"\n\n", b"\r\n\r\n", b"GET\r\n\r\n", b"{", b"{}\n"]


@pytest.mark.parametrize("data", NONSENSE, ids=repr)
def test_what_is_no_request_breaks_nothing(
    layout: Layout, server: ApiServer, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """An error or nothing, no traceback, and the next request is answered."""
    with Wire(server.path) as wire:
        wire.say(data)
        wire.socket.shutdown(socket.SHUT_WR)
        answer = b""
        while more := wire.socket.recv(65536):
            answer += more
    assert not answer or answer.startswith((b"HTTP/1.1 4", b'{"error": '))
    assert call(layout, "GET", "/v1/query") == {}
    assert not [each for each in caplog.records if each.exc_info]


def test_a_connection_for_which_there_is_no_room_is_told_so(server: ApiServer) -> None:
    """As a problem, and those that are served go on."""
    server.socket._acceptor._seats = Seats(1)
    with Wire(server.path), Wire(server.path) as wire:
        assert wire.say(request("GET", "/v1/query")).response().problem(503, "busy")["hint"] == "try again"
        assert wire.is_ended()


def test_events_reach_who_watches_and_who_comes_after(layout: Layout, server: ApiServer) -> None:
    """A second reader on the socket takes nothing from the first."""
    watches = [Watch(layout), Watch(layout)]
    assert server.on_loop(server.watching) == 2
    for watch in watches:
        watch.close()
