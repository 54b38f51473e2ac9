"""Runs a child with a deadline: to its end, collecting a limited output, or streaming an output of any size."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

from appliance.core.process.children import Child, Children

_T = TypeVar("_T")

MOST_OUTPUT = 256 * 2**20
"""Bytes of stdout above which the command is killed. ls-remote of a large forge repository is some tens of MiB."""
PIECE = 65536
"""The most bytes of stdout that are read at once; a pipe holds as many."""


class ChildFailed(Exception):
    """A child ended with the exit code `code`; it is negative when a signal ended it."""

    def __init__(self, code: int) -> None:
        super().__init__(f"exit code {code}")
        self.code = code


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
    nice: int = 0,
) -> tuple[int | None, bytes]:
    """Runs a program to its end. Returns its exit code and stdout; the code is None when it was ended after `deadline`.

    `deadline` is in seconds. `on_error` gets stderr as it comes. With `into`, stdout goes to that file instead; with
    `source`, stdin is that file from its position on. `nice` is added to its niceness. Raises OSError when the program
    cannot be started. Cancelling ends the process group.
    """
    child = children.start(
        argv,
        env=env,
        cwd=cwd,
        stdin=source if source is not None else subprocess.PIPE if stdin else subprocess.DEVNULL,
        stdout=subprocess.PIPE if into is None else into,
        stderr=subprocess.PIPE,
        pass_fds=pass_fds,
        nice=nice,
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


async def stream_child(
    children: Children,
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path,
    deadline: float,
    stderr: int,
    stdin: bytes = b"",
    nice: int = 0,
) -> AsyncGenerator[bytes, None]:
    """Runs a program and yields its stdout in pieces of at most PIECE bytes, as it is printed.

    The program is waited for at most `deadline` seconds in total, however long the reader takes; then this raises
    TimeoutError. `nice` is added to its niceness. Raises ChildFailed after the last piece unless the exit code is 0,
    and OSError when the program cannot be started. Whatever ends the generator ends the process group; close it
    (`contextlib.aclosing`) when you leave before its end.
    """
    # A file instead of a pipe, so that a program that prints before it has read everything does not block.
    source = os.memfd_create("stdin", os.MFD_CLOEXEC)
    try:
        with open(source, "wb", closefd=False) as file:
            file.write(stdin)
        os.lseek(source, 0, os.SEEK_SET)
        child = children.start(argv, env=env, cwd=cwd, stdin=source, stdout=subprocess.PIPE, stderr=stderr, nice=nice)
    finally:
        os.close(source)
    stdout = child.process.stdout
    assert stdout is not None
    try:
        waits = _Waits(deadline)
        os.set_blocking(stdout.fileno(), False)
        while data := await waits.for_(_read(stdout.fileno())):
            yield data
        code = await waits.for_(child.wait())
    finally:
        stdout.close()
        await asyncio.shield(child.end())
    if code != 0:
        raise ChildFailed(code)


class _Waits:
    """Allows waits of `budget` seconds in total. A wait beyond that raises TimeoutError."""

    def __init__(self, budget: float) -> None:
        self._left = budget

    async def for_(self, work: Coroutine[Any, Any, _T]) -> _T:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout(self._left):
                return await work
        finally:
            self._left -= loop.time() - began


async def _read(descriptor: int) -> bytes:
    """The next bytes of a pipe; empty at its end."""
    loop = asyncio.get_running_loop()
    # A child that writes faster than its reader would otherwise starve all other tasks.
    await asyncio.sleep(0)
    while True:
        try:
            return os.read(descriptor, PIECE)
        except BlockingIOError:
            await _ready(loop.add_reader, loop.remove_reader, descriptor)


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
    os.set_blocking(stream.fileno(), False)
    while data := await _read(stream.fileno()):
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
