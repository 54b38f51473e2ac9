"""Keeps a stage: in this process until a signal, or in a process of its own that ends when this one does.

The second one is forked, so that nothing is imported twice, and holds one end of a pipe. However this process ends, the
kernel closes the other end, and the stage clears everything away.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from appliance.core.errors import GitmirrorError
from appliance.demo.place import DemoPlace, move_in, remove_leavings

CLEARED_WITHIN = 20.0
"""Seconds that a stage may take to clear everything away. It takes a fraction of one."""
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Announced:
    """What somebody needs who wants to talk to the node of a demo: its directory and its URLs."""

    place: DemoPlace
    git: str
    http: str


def run_here(seed: int, announce: Callable[[Announced], None]) -> None:
    """Plays until SIGINT, SIGTERM or SIGHUP; `announce` is called once guests are accepted. Raises GitmirrorError."""
    try:
        asyncio.run(_play(seed, announce, None))
    except OSError as error:
        raise GitmirrorError(f"the demo ended early: {error}") from error


@contextlib.contextmanager
def run_beside(seed: int) -> Iterator[Callable[[], Announced]]:
    """Plays in a process of its own until the block ends. Raises GitmirrorError if it ended before.

    The function that the block gets waits until guests are accepted, and raises GitmirrorError if that fails.
    """
    reports, report = os.pipe()
    alive, life = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reports)
        os.close(life)
        _be_the_stage(seed, report, alive)
    os.close(report)
    os.close(alive)
    with open(reports, encoding="utf-8") as lines:
        try:
            yield lambda: _read(lines.readline())
        finally:
            os.close(life)
            _reap(pid)
        if line := lines.readline():
            # Why it ended before its time.
            _read(line)


def _be_the_stage(seed: int, report: int, alive: int) -> None:
    """The life of the forked process, which never returns."""
    code = 1
    try:
        # Neither the terminal's signals nor its output are meant for it.
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):
            os.dup2(nothing, descriptor)

        def say(**document: str) -> None:
            with contextlib.suppress(OSError):
                os.write(report, json.dumps(document).encode() + b"\n")

        try:
            asyncio.run(_play(seed, lambda on: say(root=str(on.place.root), git=on.git, http=on.http), alive))
            code = 0
        except GitmirrorError as error:
            say(error=error.message, hint=error.hint)
        except Exception as error:
            say(error=f"the demo ended early: {error!r}")
    finally:
        os._exit(code)


def _read(line: str) -> Announced:
    document = json.loads(line) if line else {"error": "the demo did not start"}
    if "error" in document:
        raise GitmirrorError(document["error"], hint=document.get("hint", ""))
    return Announced(DemoPlace(Path(document["root"])), document["git"], document["http"])


def _reap(pid: int) -> None:
    until = time.monotonic() + CLEARED_WITHIN
    while time.monotonic() < until:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            break
        time.sleep(0.02)
    else:
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    if status != 0:
        remove_leavings()


async def _play(seed: int, announce: Callable[[Announced], None], alive: int | None) -> None:
    """Plays until a signal, or the end of what the descriptor `alive` reads. Leaves nothing behind."""
    # Here, because whoever only waits for a stage needs none of it.
    from appliance.demo.stage import Stage

    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in ENDING:
        loop.add_signal_handler(number, stop.set)
    if alive is not None:
        loop.add_reader(alive, stop.set)
    if shutil.which("git") is None:
        raise GitmirrorError(
            "the demo needs git, and there is none on the PATH", hint="install git, version 2.39 or newer"
        )
    remove_leavings()
    tenancy = move_in()
    try:
        stage = Stage(tenancy, seed)

        async def play() -> None:
            running = await stage.open()
            announce(Announced(running.place, running.git, running.http))
            await stage.play()

        try:
            playing, stopping = asyncio.create_task(play()), asyncio.create_task(stop.wait())
            await asyncio.wait({playing, stopping}, return_when=asyncio.FIRST_COMPLETED)
            await _cancel(playing, stopping)
        finally:
            await stage.close()
    finally:
        tenancy.end()


async def _cancel(*tasks: asyncio.Task[object]) -> None:
    """Cancels tasks and waits for them. Raises the GitmirrorError of one that failed."""
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, ExceptionGroup):
            raise result.exceptions[0]
        if isinstance(result, Exception):
            raise result
