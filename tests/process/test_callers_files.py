"""Files that are written as whoever called: what the process that does it may be asked for, and what it answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.core.errors import GitmirrorError, UsageError
from appliance.core.node.callers_files import OPERATIONS, CallersFiles
from appliance.core.process.left_behind import LeftBehind


@pytest.mark.parametrize("is_behind", [True, False])
def test_only_what_was_made_is_removed(tmp_path: Path, is_behind: bool) -> None:
    """Neither a file of somebody else, nor one that stands now where the made one was; errors are as at home."""
    behind = LeftBehind(OPERATIONS)
    files = CallersFiles(behind.run if is_behind else None)
    other, made = tmp_path / "other", tmp_path / "made"
    other.write_text("precious")
    files.remove(other)
    assert other.exists()
    with files.create(made) as file:
        file.write(b"1")
    made.rename(tmp_path / "aside")
    other.rename(made)
    files.remove(made)
    assert made.read_text() == "precious"
    with files.create(tmp_path / "again") as file:
        file.write(b"2")
    files.remove(tmp_path / "again")
    files.remove(tmp_path / "again")
    assert not (tmp_path / "again").exists()
    with pytest.raises(FileExistsError):
        files.create(made)
    with pytest.raises(UsageError if not is_behind else GitmirrorError, match="is not empty"):
        files.check_out(0, tmp_path, "1" * 40, branch="b", origin="https://h/o/r")
    behind.close()
    if is_behind:
        with pytest.raises(GitmirrorError, match="cannot be asked"):
            files.remove(made)


def test_who_stays_root_writes_what_the_command_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing else, if whoever asks it was taken over by what a guest wrote."""
    monkeypatch.chdir(tmp_path)
    files = CallersFiles.left_behind(Path("named"))
    for ask in (
        lambda: files.create(tmp_path / "other"),
        lambda: files.make_directory(tmp_path / "named" / "below"),
        lambda: files.check_out(0, tmp_path / "replay", "1" * 40, branch="b", origin="https://h/o/r"),
    ):
        with pytest.raises(GitmirrorError, match="which this command was asked to write"):
            ask()
    assert list(tmp_path.iterdir()) == []
    files.create(Path("named")).close()
    assert (tmp_path / "named").exists()
