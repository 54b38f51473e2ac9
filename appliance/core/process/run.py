"""Runs a child to its end and collects its output, with a deadline and a limit on the output."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from appliance.core.process.children import Child, Children

MOST_OUTPUT = 256 * 2**20
"""Bytes of stdout above which the command is killed. ls-remote of a large forge repository is some tens of MiB."""


async def run_child(
    children: Children,
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path,
    deadline: float,
    on_error: Callable[[bytes], None],
    stdin: bytes = b"",
    pass_fds: Sequence[int] = (),
    into: IO[bytes] | None = None,
    source: IO[bytes] | None = None,
) -> tuple[int | None, bytes]:
    """Runs a program to its end. Returns its exit code and stdout; the code is None when it was ended after `deadline`.

    `deadline` is in seconds. `on_error` gets stderr as it comes. With `into`, stdout goes to that file instead; with
    `source`, stdin is that file from its position on. Raises OSError when the program cannot be started. Cancelling
    ends the process group.
    """
    child = children.start(
        argv,
        env=env,
        cwd=cwd,
        stdin=source if source is not None else subprocess.PIPE if stdin else subprocess.DEVNULL,
        stdout=subprocess.PIPE if into is None else into,
        stderr=subprocess.PIPE,
        pass_fds=pass_fds,
    )
    stdout, code = bytearray(), None

    def keep(data: bytes) -> None:
        stdout.extend(data)
        if len(stdout) > MOST_OUTPUT:
            child.signal(signal.SIGKILL)
            stdout.clear()

    try:
        async with asyncio.timeout(deadline):
            await asyncio.gather(
                _write_stdin(child, stdin),
                _drain(child.process.stdout, keep),
                _drain(child.process.stderr, on_error),
            )
            code = await child.wait()
    except TimeoutError:
        await child.end()
    except BaseException:
        await asyncio.shield(child.end())
        raise
    finally:
        for stream in (child.process.stdin, child.process.stdout, child.process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
    return code, bytes(stdout)


async def _write_stdin(child: Child, data: bytes) -> None:
    if child.process.stdin is None:
        return
    descriptor = child.process.stdin.fileno()
    os.set_blocking(descriptor, False)
    view = memoryview(data)
    loop = asyncio.get_running_loop()
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            await _ready(loop.add_writer, loop.remove_writer, descriptor)
        except BrokenPipeError:
            break
    child.process.stdin.close()


async def _drain(stream: IO[bytes] | None, take: Callable[[bytes], None]) -> None:
    if stream is None:
        return
    descriptor = stream.fileno()
    os.set_blocking(descriptor, False)
    loop = asyncio.get_running_loop()
    while True:
        # A child that writes faster than this reads would otherwise starve all other tasks.
        await asyncio.sleep(0)
        try:
            data = os.read(descriptor, 65536)
        except BlockingIOError:
            await _ready(loop.add_reader, loop.remove_reader, descriptor)
            continue
        if not data:
            return
        take(data)


async def _ready(add: Callable[..., None], remove: Callable[[int], bool], descriptor: int) -> None:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def ready() -> None:
        if not future.done():
            future.set_result(None)

    add(descriptor, ready)
    try:
        await future
    finally:
        remove(descriptor)
