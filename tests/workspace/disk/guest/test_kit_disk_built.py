"""The kit and the drives that gitmirror builds: every form and history, and what they grow to."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.core.workspace.disk.ext4 import why_not
from appliance.core.workspace.disk.images import DiskForm
from tests.conftest import WIDGETS
from tests.support.generate import add_commit
from tests.support.gitutil import git
from tests.workspace.conftest import Guest
from tests.workspace.disk import disk_lab
from tests.workspace.disk.drives_lab import Drives, Machine
from tests.workspace.disk.guest.test_kit_disk import assert_whole


@pytest.mark.slow
@pytest.mark.parametrize("history", ["full", "tip"])
@pytest.mark.parametrize("form", DiskForm)
def test_drives_as_they_are_built(
    machine: Machine, lone_guest: Guest, planted_bare: Path, tmp_path: Path, form: DiskForm, history: str
) -> None:
    """The workspace is whole and clean; so is the one of the next tip, while the first is still mounted."""
    git("clone", "--quiet", "--bare", str(planted_bare), str(tmp_path / "bare.git"), cwd=tmp_path)
    lab = disk_lab.DiskLab(tmp_path / "bare.git", tmp_path / "disks", history=history, form=form)
    for number in range(2):
        image = lab.build()
        drives = Drives(lab.place.tree(image), lab.place.data(image))
        assert drives.fields()["repository"] == WIDGETS
        guest = lone_guest.with_(GITMIRROR_UPSTREAM="", GITMIRROR_DRIVES=machine.drives(drives))
        workspace = guest.home / str(number)
        done = guest.hydrate(workspace)
        assert done.hydrated(via="disk") == git("rev-parse", "main", cwd=lab.bare) == image.commit
        assert done.err == ""
        assert machine.run("git", "status", "--porcelain", "--ignored", cwd=workspace) == ""
        machine.run("git", "fsck", "--strict", cwd=workspace)
        assert machine.run("git", "diff", "--stat", "HEAD", cwd=workspace) == ""
        add_commit(lab.bare, "main", {f"new{number}.txt": "new\n", "README.md": f"{number}\n"})
    assert machine.run("git", "status", "--porcelain", cwd=guest.home / "0") == ""
    machine.run("umount", str(guest.home / "0"))
    assert_whole(machine, workspace, image.commit, history=history)


def test_an_ext4_drive_whose_index_is_damaged_is_refused(
    machine: Machine, lone_guest: Guest, planted_bare: Path, tmp_path: Path
) -> None:
    """ext4 itself has no checksums of what files hold."""
    if reason := why_not():
        pytest.skip(reason)
    lab = disk_lab.DiskLab(planted_bare, tmp_path / "disks", form=DiskForm.EXT4)
    tree = lab.place.tree(lab.build())
    image = bytearray(tree.read_bytes())
    image[image.index(b"DIRC") + 200] ^= 1
    tree.write_bytes(image)
    done = lone_guest.with_(GITMIRROR_DRIVES=machine.drives(Drives(tree, None))).hydrate("ws")
    assert done.hydrated(via="upstream")
    assert "it is damaged: the checksum of its .git does not match" in done.err
    assert machine.mounts() == []
