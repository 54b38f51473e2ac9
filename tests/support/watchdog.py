"""How long the event loop of a real `serve` stood still, measured inside that process."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from tests.support.serve import ROOT

_INSIDE = """
import asyncio.base_events, os, time

_run_forever = asyncio.base_events.BaseEventLoop.run_forever
_into = os.environ["LOOP_WATCHDOG"]


def run_forever(loop):
    state = {"last": time.thread_time()}

    def beat():
        now = time.thread_time()
        with open(_into, "a") as file:
            if now - state["last"] > 0.05:
                file.write(f"{now - state['last']:.3f}\\n")
        state["last"] = time.thread_time()
        loop.call_later(0.01, beat)

    loop.call_soon(beat)
    _run_forever(loop)


asyncio.base_events.BaseEventLoop.run_forever = run_forever
"""


class Watchdog:
    """Notes how much processor time the loop's thread takes between two beats of a timer of 10 ms.

    Processor time, since a machine with much else to do makes a process wait, and that is no stop of the loop.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True)
        (directory / "sitecustomize.py").write_text(_INSIDE)
        self._directory = directory
        self._noted = directory / "stops"

    @property
    def env(self) -> Mapping[str, str]:
        """What `serve` is to be started with."""
        return {"PYTHONPATH": f"{self._directory}{os.pathsep}{ROOT}", "LOOP_WATCHDOG": str(self._noted)}

    def forget(self) -> None:
        """What was noted so far does not count."""
        with contextlib.suppress(FileNotFoundError):
            self._noted.unlink()

    def longest(self) -> float:
        """The longest stop so far, in seconds of processor time; 0 for none over 50 ms."""
        with contextlib.suppress(FileNotFoundError):
            return max(map(float, self._noted.read_text().split()), default=0.0)
        return 0.0
