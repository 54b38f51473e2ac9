"""`demo` in a terminal: the view opens on a node at work, and however it ends, nothing is left."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.demo.running import DemoProcess
from tests.support.gitutil import clean_env, wait_until
from tests.support.serve import ROOT


@contextmanager
def terminal() -> Iterator[tuple[int, int]]:
    """The two ends of a pty of 120x32."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 32, 120, 0, 0))
    try:
        yield ours, theirs
    finally:
        os.close(ours)
        os.close(theirs)


Leave = Callable[[DemoProcess, int], object]


def press(key: bytes) -> Leave:
    """Something that types a key."""
    return lambda demo, ours: os.write(ours, key)


def send(number: signal.Signals) -> Leave:
    """Something that sends a signal to the command that was typed."""
    return lambda demo, ours: demo.process.send_signal(number)


def kill_the_stage(demo: DemoProcess, ours: int) -> None:
    """Kills the process that has started all others, and leaves the view."""
    pid = demo.process.pid
    [stage] = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    os.kill(int(stage), signal.SIGKILL)
    os.write(ours, b"q")


@pytest.mark.parametrize(
    ("leave", "code"),
    [
        pytest.param(press(b"q"), 0, id="q"),
        pytest.param(press(b"\x03"), 0, id="ctrl-c", marks=pytest.mark.slow),
        pytest.param(send(signal.SIGTERM), 0, id="term", marks=pytest.mark.slow),
        pytest.param(send(signal.SIGKILL), -9, id="crash", marks=pytest.mark.slow),
        pytest.param(kill_the_stage, 0, id="stage", marks=pytest.mark.slow),
    ],
)
def test_the_view_opens_and_nothing_is_left(tmp_path: Path, leave: Leave, code: int) -> None:
    """Rows on screen, and what they are; then the key or the signal."""
    with terminal() as (ours, theirs), DemoProcess(tmp_path, terminal=theirs) as demo:
        shown = bytearray()

        def drawn() -> bool:
            while select.select([ours], [], [], 0)[0]:
                shown.extend(os.read(ours, 65536))
            text = re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"", shown)
            return b"acme/search" in text and b"made up" in text

        wait_until(drawn, timeout=120, message="the view has rows")
        assert len(demo.places) == 1
        leave(demo, ours)

        def ended() -> bool:
            # Nobody can write into a full terminal.
            drawn()
            return demo.process.poll() is not None and not demo.places

        wait_until(ended, timeout=60, message="the demo has ended")
        assert demo.process.returncode == code, shown[-3000:].decode(errors="replace")
        demo.wait(code)
        if code == 0:
            assert b"\x1b[?1049l" in shown, "the terminal is as it was"
            assert b"nothing of it is left" in shown


def test_without_a_terminal_it_says_what_to_do(tmp_path: Path) -> None:
    """Before anything is started."""
    done = subprocess.run(
        [sys.executable, "-m", "appliance", "demo"],
        env={**clean_env(tmp_path), "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "--serve-only" in done.stderr
    assert list(tmp_path.glob("gitmirror-demo-*")) == []
