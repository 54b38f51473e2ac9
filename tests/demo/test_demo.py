"""`demo --serve-only`: everybody is at work, the printed lines work as they stand, and nothing is left of it."""

from __future__ import annotations

import errno
import os
import signal
import tempfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from appliance.cli.main import cli
from appliance.demo.place import remove_leavings
from appliance.demo.stage import Stage
from tests.demo.running import DemoProcess
from tests.support.gitutil import git, wait_until
from tests.support.processes import processes_of

LAST = "refs/heads/my-branch"
"""The end of the last line that is printed."""


def test_everybody_is_at_work_and_nothing_is_left(tmp_path: Path) -> None:
    """The lines typed one after the other; an upstream that fails, sessions, both roads; then TERM."""
    with DemoProcess(tmp_path, "--serve-only") as demo:
        status, view, clone, tar, push, refused = demo.lines(LAST)
        assert view == status.removesuffix("status") + "tui"

        def is_alive() -> bool:
            states = {repo["name"]: repo["state"] for repo in demo.ask("status")["repos"]}
            sessions = demo.ask("sessions")
            ways = {row["way"] for row in demo.ask("activity")}
            refusals = [row["guest"] for row in demo.ask("audit") if row["verdict"] == "rejected"]
            return (
                states.pop("platform/infra") == "failing"
                and set(states.values()) == {"fresh"}
                and max((session["turns"] for session in sessions), default=0) > 1
                and {"snapshot", "hit"} <= ways
                and "vm-1" in refusals
            )

        wait_until(is_alive, timeout=120, interval=0.5, message="everybody is at work")
        assert demo.type(status) in (0, 3), "the upstream that fails may have recovered"
        assert [demo.type(line) for line in (clone, tar, push, refused)] == [0, 0, 0, 1]
        assert (tmp_path / "workspace" / "checkout" / "gateway.py").is_file()
        assert git("log", "-1", "--format=%ae", cwd=tmp_path / "checkout").endswith("@example.com")
        [mine] = [session for session in demo.ask("sessions") if session["session"] == "my-session"]
        shown = demo.ask("session", "show", mine["repo"], mine["session"])
        assert shown["turns"]
        others = [session for session in demo.ask("sessions") if session["session"] != "my-session"]
        turn = demo.ask("session", "show", others[0]["repo"], others[0]["session"])["turns"][0]
        assert "task" in str(turn["notes"]) and "transcript.json" in str(turn["attachments"])
        [place] = demo.places
        assert processes_of(place)
        demo.process.send_signal(signal.SIGTERM)
        demo.wait()


def test_a_full_disk_ends_it_with_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing is left then either."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)

    async def fail(stage: Stage) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Stage, "open", fail)
    done = CliRunner().invoke(cli, ["demo", "--serve-only"])
    assert done.exit_code == 1 and "the demo ended early: [Errno 28] No space left on device" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_next_demo_removes_what_a_killed_one_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But neither a demo that lives, nor what only has such a name."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    (tmp_path / "gitmirror-demo-of-mine").mkdir()
    os.symlink(tmp_path, tmp_path / "gitmirror-demo-link")
    with DemoProcess(tmp_path, "--serve-only") as demo:
        demo.lines(LAST)
        assert remove_leavings() == 0
        [place] = [path for path in demo.places if (path / "owner.lock").exists() and not path.is_symlink()]
        assert processes_of(place)
        demo.process.kill()
        demo.process.wait()
        assert place.exists() and processes_of(place)
        assert remove_leavings() == 1
        wait_until(lambda: not processes_of(place), message="its processes have ended")
        assert [path.name for path in demo.places] == ["gitmirror-demo-link", "gitmirror-demo-of-mine"]
