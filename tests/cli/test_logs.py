"""`logs`: the journal of the service, or where the log is without one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.core.errors import GitmirrorError
from appliance.core.layout import Layout
from appliance.core.ops import journal
from appliance.core.ops.journal import journal_command
from appliance.core.process.owner import claim
from tests.support.serve import ROOT


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """A machine with a journal and the unit."""
    (tmp_path / "journalctl").write_text("#!/bin/sh\n")
    (tmp_path / "journalctl").chmod(0o755)
    (tmp_path / "gitmirror.service").touch()
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(journal, "UNIT_PATHS", (str(tmp_path),))
    return Layout(tmp_path / "state")


def test_the_journal_is_asked_for_the_service(installed: Layout) -> None:
    """The last lines by default, all of them since a time, and what else was asked for."""
    assert journal_command(installed) == ["journalctl", "--unit=gitmirror.service", "--lines=100"]
    assert journal_command(installed, follow=True, lines=0)[2:] == ["--lines=0", "--follow"]
    asked = journal_command(installed, since="2026-11-26T08:00:00.000Z", priority="err")
    assert asked[2:] == ["--since=@1795680000", "--priority=err"]


def test_without_a_unit_the_log_is_on_stderr(installed: Layout, tmp_path: Path) -> None:
    """The hint says how to have one; of a serve that runs by hand, where it goes."""
    (tmp_path / "gitmirror.service").unlink()
    with pytest.raises(GitmirrorError, match="not installed") as none:
        journal_command(installed)
    assert "2> serve.log" in none.value.hint and not installed.state.exists()
    kept, saved = tmp_path / "serve.log", os.dup(2)
    with kept.open("w") as file:
        os.dup2(file.fileno(), 2)
    held = claim(installed, "serve")
    try:
        with pytest.raises(GitmirrorError) as running:
            journal_command(installed)
    finally:
        held.release()
        os.dup2(saved, 2)
        os.close(saved)
    assert f"`tail -f {kept}`" in running.value.hint and str(os.getpid()) in running.value.hint


def test_a_machine_without_a_journal(installed: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under another supervisor."""
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(GitmirrorError, match="no journal"):
        journal_command(installed)


def test_the_command_becomes_journalctl(installed: Layout, tmp_path: Path) -> None:
    """Its output and its exit code are those of the journal; without a terminal it needs no pager."""
    (tmp_path / "journalctl").write_text('#!/bin/sh\necho "$@"\ngrep SigIgn /proc/self/status\nexit 7\n')
    program = (
        "import sys; from appliance.core.ops import journal; journal.UNIT_PATHS = (sys.argv.pop(1),)\n"
        "from appliance.__main__ import main; main()"
    )
    argv = [sys.executable, "-c", program, str(tmp_path), "logs", "-f", "-n", "5", "-p", "warning"]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stderr) == (7, "")
    asked, ignored = done.stdout.splitlines()
    assert asked == "--unit=gitmirror.service --lines=5 --priority=warning --follow --no-pager"
    assert not int(ignored.split()[1], 16) >> signal.SIGPIPE - 1 & 1, "it ends when its reader does"
