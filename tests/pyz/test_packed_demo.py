"""`demo` from the built file alone."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.demo.running import DemoProcess
from tests.pyz.conftest import Packed
from tests.support.gitutil import wait_until


@pytest.mark.slow
def test_the_demo_needs_nothing_but_the_file(packed: Packed, tmp_path: Path) -> None:
    """It starts its node by the same file, prints the file in its lines, and leaves nothing."""
    program = (str(packed.file),)
    with DemoProcess(tmp_path, "--serve-only", program=program, SHIV_ROOT=str(packed.root), PYTHONPATH="") as demo:
        status, _, clone, *_ = demo.lines("refs/heads/my-branch")
        assert status.startswith(f"{packed.file} --state ")
        wait_until(lambda: demo.ask("sessions"), timeout=120, message="agents record")
        assert demo.type(clone) == 0
        demo.process.send_signal(signal.SIGINT)
        demo.wait()
