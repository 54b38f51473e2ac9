"""The directory of a demo goes away whatever is written there at its end."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

import pytest

from appliance.core.git.command import write_git_configs
from appliance.demo.place import move_in


def test_a_last_read_of_the_view_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It writes git's configs where there are none, again and again here, and does not bring back what is gone."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    tenancy = move_in()
    layout, wrote = tenancy.place.layout, threading.Event()

    def read() -> None:
        while layout.state.exists():
            with contextlib.suppress(OSError):
                write_git_configs(layout, max_push=2**20)
                wrote.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    assert wrote.wait(60)
    tenancy.end()
    reader.join(60)
    assert list(tmp_path.glob("gitmirror-demo-*")) == []
