"""More drives than one workspace needs: old copies, and drives that are not whole, beside the right ones."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.workspace.conftest import EVERY_SHELL, Guest
from tests.workspace.disk.drives_lab import Drives, Machine
from tests.workspace.disk.guest.conftest import MakeDrives
from tests.workspace.disk.guest.test_kit_disk import assert_whole, cut, data_of, flip, tip_of


def copied(drives: Drives, directory: Path) -> Drives:
    """Copies that may be changed."""
    directory.mkdir()
    return Drives(*(Path(shutil.copy(path, directory / path.name)) for path in drives.paths))


@pytest.mark.parametrize(
    "shell", [EVERY_SHELL[0], *(pytest.param(shell, marks=pytest.mark.slow) for shell in EVERY_SHELL[1:])]
)
def test_an_older_copy_of_the_data_drive_is_passed_over(
    machine: Machine, lone_guest: Guest, made: MakeDrives, planted_bare: Path, tmp_path: Path, shell: str
) -> None:
    """A data drive only grows, so one that is too short was copied earlier; the right one may follow."""
    right, old = made("erofs"), copied(made("erofs"), tmp_path / "old")
    cut(data_of(old))
    named = ",".join(machine.attach(path) for path in (data_of(old), right.tree, data_of(right)))
    guest = machine.guest(Guest(lone_guest.home, lone_guest.kit, shell, None, lone_guest.env), GITMIRROR_DRIVES=named)
    done = guest.hydrate("ws")
    assert done.hydrated(via="disk") == tip_of(planted_bare)
    assert done.err == ""
    assert_whole(machine, guest.home / "ws", tip_of(planted_bare))


@pytest.mark.parametrize("fault", ["short", "damaged", "no data", "other commit", "no file system"])
@pytest.mark.parametrize("form", ["erofs", "ext4"])
def test_a_later_tree_drive_is_taken_if_the_first_is_refused(
    machine: Machine, lone_guest: Guest, made: MakeDrives, planted_bare: Path, tmp_path: Path, fault: str, form: str
) -> None:
    """The one that is refused is named with the reason, and nothing of it stays mounted."""
    bad = copied(made("erofs"), tmp_path / "bad")
    match fault:
        case "short":
            cut(bad.tree)
        case "damaged":
            flip(bad.tree)
        case "no data":
            bad.rewrite(data="other 4096")
        case "other commit":
            bad.rewrite(commit="1" * 40)
        case "no file system":
            bad.rewrite(format="ext4")
    first = machine.attach(bad.tree)
    guest = lone_guest.with_(GITMIRROR_DRIVES=f"{first},{machine.drives(made(form))},{machine.attach(data_of(bad))}")
    done = guest.hydrate("ws")
    assert done.hydrated(via="disk") == tip_of(planted_bare)
    assert done.err.count("\n") == 1 and done.err.startswith(f"gitmirror: not using the drive {first}: ")
    assert_whole(machine, guest.home / "ws", tip_of(planted_bare))


@pytest.mark.parametrize(
    "shell", [EVERY_SHELL[0], *(pytest.param(shell, marks=pytest.mark.slow) for shell in EVERY_SHELL[1:])]
)
def test_each_tree_drive_that_is_refused_is_named(
    machine: Machine, lone_guest: Guest, made: MakeDrives, tmp_path: Path, shell: str
) -> None:
    """One line each says why; then the next source is taken."""
    bad = [copied(made("erofs"), tmp_path / name) for name in ("cut", "damaged", "missing", "short")]
    cut(bad[0].tree)
    flip(bad[1].tree)
    bad[2].rewrite(data="other 4096")
    cut(data_of(bad[3]))
    trees = [machine.attach(drives.tree) for drives in bad]
    named = ",".join([*trees, machine.attach(data_of(bad[3]))])
    guest = machine.guest(Guest(lone_guest.home, lone_guest.kit, shell, None, lone_guest.env), GITMIRROR_DRIVES=named)
    done = guest.hydrate("ws")
    done.hydrated(via="upstream")
    reasons = ("it is not ", "it is damaged", "its data drive, other, is missing", "has less than")
    said = [line for line in done.err.splitlines() if "not using the drive" in line]
    for line, tree, reason in zip(said, trees, reasons, strict=True):
        assert line.startswith(f"gitmirror: not using the drive {tree}: ") and reason in line
    assert machine.mounts() == []
