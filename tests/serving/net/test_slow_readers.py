"""A guest that reads slowly is served to the end, and one that stops reading is not waited for."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.core.serving.net.streams import IdleTimeout, SocketStream

IDLE = 1.5
SIZE = 6 * 2**20
"""More than both buffers hold, so that the kernel says several times that the socket takes no more."""


@contextlib.contextmanager
def connection() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Our end, with a large buffer, and the guest's, with a small one."""
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as guest:
        guest.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
        guest.connect(listening.getsockname())
        ours, _ = listening.accept()
        with ours:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**20)
            ours.setblocking(False)
            yield ours, guest


def read_slowly(guest: socket.socket, reads: int, received: list[int]) -> None:
    """Reads 32 KiB every 150 ms so many times, which frees a third of our buffer only after 3 s, and then all."""
    pause = threading.Event()
    while data := guest.recv(32768):
        received.append(len(data))
        if len(received) < reads:
            pause.wait(0.15)


def read_at(guest: socket.socket, times: dict[float, int], received: list[int]) -> None:
    """Reads so many bytes at each of these times, as multiples of IDLE from the start, and then all."""
    pause, at = threading.Event(), 0.0
    for time, count in times.items():
        pause.wait((time - at) * IDLE)
        at = time
        while count > 0:
            received.append(len(guest.recv(count)))
            count -= received[-1]
    while data := guest.recv(32768):
        received.append(len(data))


async def send(ours: socket.socket, by_file: bool, path: Path) -> None:
    """Sends SIZE bytes."""
    stream = SocketStream(ours, IDLE)
    if by_file:
        path.write_bytes(bytes(SIZE))
        with path.open("rb") as file:
            await stream.send_file(file.fileno(), 0, os.stat(file.fileno()).st_size)
    else:
        await stream.send(bytes(SIZE))
    await stream.end()


@pytest.mark.slow
@pytest.mark.parametrize("by_file", [False, True], ids=["bytes", "file"])
def test_a_guest_that_reads_slowly_gets_all(tmp_path: Path, by_file: bool) -> None:
    """It was cut off, because a socket takes more only when a third of its buffer is free."""
    received: list[int] = []
    with connection() as (ours, guest):
        reader = threading.Thread(target=read_slowly, args=(guest, 40, received))
        reader.start()
        asyncio.run(send(ours, by_file, tmp_path / "file"))
        ours.close()
        reader.join(60)
    assert sum(received) == SIZE


@pytest.mark.slow
@pytest.mark.parametrize("by_file", [False, True], ids=["bytes", "file"])
def test_a_guest_that_reads_much_and_then_little_gets_all(tmp_path: Path, by_file: bool) -> None:
    """It was cut off, because only what it read in a tenth of `idle` counted."""
    received: list[int] = []
    with connection() as (ours, guest):
        times = {0.1: 3 * 2**19, 0.6: 32768, 1.4: 32768, 2.1: 32768}
        reader = threading.Thread(target=read_at, args=(guest, times, received))
        reader.start()
        asyncio.run(send(ours, by_file, tmp_path / "file"))
        ours.close()
        reader.join(60)
    assert sum(received) == SIZE


@pytest.mark.parametrize("by_file", [False, True], ids=["bytes", "file"])
def test_a_guest_that_stops_reading_is_cut_off(tmp_path: Path, by_file: bool) -> None:
    with connection() as (ours, _), pytest.raises(IdleTimeout):
        asyncio.run(send(ours, by_file, tmp_path / "file"))
