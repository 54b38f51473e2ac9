"""The progress of a first clone: drawn on a terminal, and nowhere else."""

from __future__ import annotations

import os
import pty
import subprocess

import pytest

from tests.conftest import WIDGETS, ServeFactory
from tests.support.upstream import HttpUpstream


@pytest.mark.slow
@pytest.mark.parametrize("runs", [True, False], ids=["with serve", "without serve"])
def test_a_terminal_sees_the_first_clone(upstream: HttpUpstream, serve_factory: ServeFactory, runs: bool) -> None:
    """As NDJSON of the API, or from git directly; the line is erased before the result is printed."""
    node = serve_factory()
    if runs:
        node.start()
    ours, theirs = pty.openpty()
    argv = [*node.command, "--state", str(node.state), "--config", str(node.config), "add-repo", upstream.url(WIDGETS)]
    process = subprocess.Popen(argv, cwd=node.cwd, env=node.env, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    drawn = b""
    try:
        while piece := os.read(ours, 65536):
            drawn += piece
    except OSError:
        # Linux ends a terminal that nobody has open any more with EIO.
        pass
    finally:
        os.close(ours)
    assert process.wait(60) == 0, drawn
    lines = drawn.decode().split("\r\x1b[K")
    assert any(line.startswith("Receiving objects") and line.endswith("] 100%") for line in lines), drawn
    assert lines[-1].startswith(f"{WIDGETS} is registered (fresh)")


@pytest.mark.slow
def test_a_pipe_gets_the_result_alone(upstream: HttpUpstream, serve_factory: ServeFactory) -> None:
    done = serve_factory().start().cli("add-repo", upstream.url(WIDGETS))
    assert (done.stdout, done.stderr) == ("", f"{WIDGETS} is registered (fresh)\n")
