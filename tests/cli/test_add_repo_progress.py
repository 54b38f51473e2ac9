"""The progress of a first clone: on a terminal one line that is redrawn, elsewhere a line every few seconds."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

import pytest

from appliance.cli import progress
from tests.conftest import WIDGETS, ServeFactory
from tests.support.gitutil import wait_until
from tests.support.upstream import HttpUpstream

RECEIVING = "Receiving objects:  45% (450123/1000000), 1.25 GiB | 12.00 MiB/s"


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
    whole = r"receiving objects +\[#{24}\] 100%(  [\d.]+ [KM]?i?B)?.*  \d+s"
    assert any(re.fullmatch(whole, line) for line in lines), drawn
    assert lines[-1].startswith(f"{WIDGETS} is registered (fresh)")


@pytest.mark.slow
def test_a_pipe_gets_the_result_alone(upstream: HttpUpstream, serve_factory: ServeFactory) -> None:
    """Unless it takes long."""
    done = serve_factory().start().cli("add-repo", upstream.url(WIDGETS))
    assert (done.stdout, done.stderr) == ("", f"{WIDGETS} is registered (fresh)\n")


@pytest.mark.slow
def test_status_says_how_far_a_first_clone_is(upstream: HttpUpstream, serve_factory: ServeFactory) -> None:
    """For as long as it runs."""
    upstream.on(WIDGETS).hang_after = 50_000
    serve = serve_factory(repos=[upstream.url(WIDGETS)]).start()
    running = re.compile(rf"^{WIDGETS}: [a-z ]+: [0-9]+% \([0-9,]+ of [0-9,]+\).*, for [0-9]+m?s$", re.MULTILINE)
    wait_until(lambda: running.search(serve.cli("status").stdout), message="status shows the progress")
    upstream.reset()
    serve.wait_for_repo(WIDGETS)
    assert f"{WIDGETS}: " not in serve.cli("status").stdout


def test_a_pipe_hears_of_a_long_clone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every few seconds, also while git says nothing: objects, bytes, speed and the time so far."""
    monkeypatch.setattr(progress, "EVERY", 0.01)
    heard = ""

    def hears(words: str) -> bool:
        nonlocal heard
        heard += capsys.readouterr().err
        return words in heard

    with progress.CloneProgress() as shown:
        wait_until(lambda: hears("waiting for the upstream, 0s so far\n"), message="it waits")
        shown.take("remote: Enumerating objects: 1000000, done.")
        wait_until(lambda: hears("enumerating objects: 1,000,000, 0s so far\n"), message="it is counted")
        shown.take(RECEIVING)
        shown.take("remote: \x1b[31mall your base")
        line = "receiving objects: 45% (450,123 of 1,000,000), 1.2 GiB, 12.0 MiB/s, 0s so far\n"
        wait_until(lambda: hears(line), message="it is received")
        shown.take("Resolving deltas:   7% (7/100)")
        wait_until(lambda: hears("resolving deltas: 7% (7 of 100), 1.2 GiB, 0s so far\n"), message="it is resolved")
    assert "\x1b" not in heard


def test_a_line_fits_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that wraps could not be erased."""
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setattr(progress, "_columns", lambda: 40)
        with progress.CloneProgress() as shown:
            shown.take(RECEIVING)
        drawn = ""
        # The kernel hands over what is written to a terminal a little later.
        while drawn.count("\r\x1b[K") < 2:
            drawn += os.read(ours, 65536).decode()
    os.close(ours)
    lines = drawn.split("\r\x1b[K")
    assert "receiving objects    [##########--------"[:39] in lines and lines[-1] == ""
    assert max(map(len, lines)) == 39
