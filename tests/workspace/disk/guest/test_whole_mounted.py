"""Drives with submodules and LFS files, mounted by the kernel and hydrated from by the kit."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from appliance.core.workspace.disk.ext4 import why_not
from appliance.core.workspace.disk.images import DiskForm
from tests.support.drives import mounted, needs_mount
from tests.workspace.conftest import Guest
from tests.workspace.disk.disk_lab import DiskLab
from tests.workspace.disk.drives_lab import Drives, Machine
from tests.workspace.disk.whole_lab import WholeLab, check_whole, create, without_git

pytestmark = [pytest.mark.slow, needs_mount]

NEEDS_EXT4 = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
FORMS = [DiskForm.EROFS, DiskForm.SINGLE, pytest.param(DiskForm.EXT4, marks=NEEDS_EXT4)]
WITH_LFS = ("-c", "filter.lfs.clean=git-lfs clean -- %f", "-c", "filter.lfs.smudge=git-lfs smudge -- %f",
            "-c", "filter.lfs.process=git-lfs filter-process", "-c", "filter.lfs.required=true")  # fmt: skip


@pytest.fixture
def whole(tmp_path: Path) -> WholeLab:
    """Three levels of submodules, and an LFS file of 5 MB in two of the repositories."""
    bare = create(tmp_path / "upstreams" / "top.git")
    made = WholeLab(DiskLab(bare, tmp_path / "disks"), bare.parent, random.Random(2).randbytes(5_000_003))
    made.make()
    return made


@pytest.mark.parametrize(
    ("form", "history"),
    [(DiskForm.EROFS, "full"), (DiskForm.SINGLE, "tip"), pytest.param(DiskForm.EXT4, "full", marks=NEEDS_EXT4)],
)
def test_the_kernel_shows_what_a_person_has(whole: WholeLab, tmp_path: Path, form: DiskForm, history: str) -> None:
    """Three levels, and nothing that git reads again."""
    whole.lab.form, whole.lab.history = form, history
    image = whole.build()
    kind = "ext4" if form is DiskForm.EXT4 else "erofs"
    with mounted(whole.lab.place.tree(image), whole.lab.place.data(image), kind=kind) as top:
        check_whole(top, whole.clone(tmp_path / "clone"), history=history)


@pytest.mark.parametrize("form", FORMS)
def test_the_kit_hydrates_a_workspace_in_which_submodules_are_worked_in(
    whole: WholeLab, machine: Machine, lone_guest: Guest, tmp_path: Path, form: DiskForm
) -> None:
    """Clean with git-lfs and without, and writable like any: a commit in the innermost, `sync`, `update`, `deinit`."""
    whole.lab.form = form
    image = whole.build()
    drives = Drives(whole.lab.place.tree(image), whole.lab.place.data(image))
    guest = lone_guest.with_(GITMIRROR_UPSTREAM="", GITMIRROR_DRIVES=machine.drives(drives))
    workspace = guest.home / "ws"
    done = guest.hydrate(workspace)
    assert (done.hydrated(via="disk"), done.err) == (image.commit, "")
    assert without_git(machine.path(workspace)) == without_git(whole.clone(tmp_path / "clone"))
    filters = [(), WITH_LFS] if shutil.which("git-lfs") else [()]
    for options in filters:
        assert machine.run("git", *options, "status", "--porcelain", "--ignored", cwd=workspace) == ""
        assert machine.run("git", *options, "diff", "--submodule=diff", "HEAD", cwd=workspace) == ""
    status = machine.run("git", "submodule", "status", "--recursive", cwd=workspace).splitlines()
    assert len(status) == 3 and all(line.startswith(" ") for line in status)
    if len(filters) > 1:
        listed = machine.run("git", *WITH_LFS, "lfs", "ls-files", cwd=workspace)
        assert listed.split()[1:] == ["*", "data/model.bin"]
    inner = workspace / "lib" / "deep" / "inner"
    core = inner / "core"
    machine.run("git", "submodule", "update", "--init", "--recursive", "--no-fetch", cwd=workspace)
    machine.run("git", "submodule", "sync", "--recursive", cwd=workspace)
    script = "echo more > README && git -c user.name=a -c user.email=a@example.com commit -qam more && git status -s"
    assert machine.run("sh", "-c", script, cwd=core) == ""
    assert machine.run("git", "status", "--porcelain", cwd=inner) == "M core".rjust(7)
    assert machine.run("git", "submodule", "status", cwd=inner).startswith("+")
    machine.run("sh", "-c", "echo changed > data/model.bin", cwd=inner)
    assert "data/model.bin" in machine.run("git", "status", "--porcelain", cwd=inner)
    machine.run("git", "submodule", "deinit", "-f", "lib", cwd=workspace)
    machine.run("git", "submodule", "update", "--init", "--no-fetch", "lib", cwd=workspace)
    assert machine.run("git", "status", "--porcelain", cwd=workspace) == ""
    machine.run("umount", str(workspace))
