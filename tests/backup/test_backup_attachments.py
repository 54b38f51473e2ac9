"""Attachments are on this node alone: a backup has them, `backup verify` reads them, and `restore` brings them back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.backup.conftest import back_up, record_session, verify
from tests.backup.test_backup_cycle import restored
from tests.conftest import WIDGETS, ServeFactory
from tests.recording.test_turn_details import put, shown
from tests.serving.conftest import Node


@pytest.mark.slow
def test_attachments_come_back(
    backed: Callable[..., Node], serve_factory: ServeFactory, target: Path, tmp_path: Path
) -> None:
    """Each file once, though two turns have it; a damaged one is named, and the backup of a damaged one says so."""
    node = backed()
    commits = record_session(node, tmp_path / "guest", "s")
    for commit in commits:
        assert put(node.serve, "s", commit, "a.txt", b"as it was")[0] == 201
    assert put(node.serve, "s", commits[1], "b.txt", b"")[0] == 201
    assert back_up(node.serve, target)["problems"] == []
    files = sorted((target / "attachments" / WIDGETS).iterdir())
    assert len(files) == 2
    assert verify(node.serve, target) == []
    other = restored(node, serve_factory, target)
    other.serve.start()
    expected = [turn["attachments"] for turn in shown(node, "s")]
    assert [turn["attachments"] for turn in shown(other, "s")] == expected
    for turn in ("1", "2"):
        read = other.serve.cli("session", "attachment", WIDGETS, "s", "a.txt", "--turn", turn)
        assert read.stdout == "as it was"
    largest = max(files, key=lambda path: path.stat().st_size)
    largest.write_bytes(b"as it is.")
    assert verify(node.serve, target) == [str(largest.relative_to(target))]
    node.serve.cli("session", "drop", WIDGETS, "s", "--yes")
    assert back_up(node.serve, target)["problems"] == []
