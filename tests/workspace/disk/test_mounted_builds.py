"""Disks as the kernel mounts them, and as the tools for their file systems see them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from appliance.core.errors import GitmirrorError
from appliance.core.workspace.disk import ext4
from appliance.core.workspace.disk.images import DiskForm
from tests.support.drives import mounted, needs_mount
from tests.support.gitutil import fsck, git
from tests.workspace.disk.disk_lab import DiskLab, clone, fast_import, files_of, is_untouched, nasty_entries

needs_ext4 = pytest.mark.skipif(ext4.why_not() is not None, reason=str(ext4.why_not()))
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"


def check_with(tool: str, *words: str) -> None:
    """Run a checker of file systems, which must find nothing."""
    program = shutil.which(tool, path=PATH)
    if program is None:
        pytest.skip(f"there is no {tool}")
    done = subprocess.run([program, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def owners_below(top: Path) -> set[int]:
    """The owners of everything below a directory, and of the directory."""
    below = (Path(parent, name) for parent, directories, files in os.walk(top) for name in directories + files)
    return {path.lstat().st_uid for path in [top, *below]}


@pytest.mark.parametrize("form", [DiskForm.EROFS, DiskForm.SINGLE, pytest.param(DiskForm.EXT4, marks=needs_ext4)])
def test_checkers_of_file_systems_find_nothing(lab: DiskLab, form: DiskForm) -> None:
    """fsck.erofs reads all contents, e2fsck all metadata."""
    fast_import(lab.bare, [nasty_entries()])
    lab.form = form
    image = lab.build()
    tree, data = str(lab.place.tree(image)), lab.place.data(image)
    if form is DiskForm.EXT4:
        check_with("e2fsck", "-f", "-n", tree)
    else:
        check_with("fsck.erofs", *([f"--device={data}"] if data else []), tree)


@needs_mount
@pytest.mark.parametrize(
    ("form", "history"),
    [
        (DiskForm.EROFS, "full"),
        pytest.param(DiskForm.SINGLE, "tip", marks=pytest.mark.slow),
        pytest.param(DiskForm.EXT4, "full", marks=needs_ext4),
        pytest.param(DiskForm.EXT4, "tip", marks=[needs_ext4, pytest.mark.slow]),
    ],
)
def test_the_kernel_shows_what_a_clone_has(lab: DiskLab, tmp_path: Path, form: DiskForm, history: str) -> None:
    """Path by path and byte by byte, owned by root, and git has nothing to read again."""
    fast_import(lab.bare, [{b"first": (b"100644", b"1\n")}, nasty_entries()])
    lab.form, lab.history = form, history
    image = lab.build()
    kind = "ext4" if form is DiskForm.EXT4 else "erofs"
    with mounted(lab.place.tree(image), lab.place.data(image), kind=kind) as top:
        assert files_of(top) == files_of(clone(lab.bare, tmp_path / "clone", image.commit))
        assert is_untouched(top)
        assert git("status", "--porcelain", cwd=top) == ""
        fsck(top)
        assert {os.lstat(os.path.join(parent, name)).st_uid for parent, _, names in os.walk(top) for name in names} == {
            0
        }


@pytest.mark.slow
@needs_ext4
@needs_mount
def test_an_ext4_disk_that_another_user_built_is_owned_by_root(lab: DiskLab, tmp_path: Path) -> None:
    """The service is not root, and git in the guest refuses a repository of somebody else."""
    fast_import(lab.bare, [nasty_entries()])
    lab.form = DiskForm.EXT4
    subprocess.run(["chown", "-R", "65534:65534", str(lab.bare)], check=True)
    lab.directory.mkdir()
    os.chown(lab.directory, 65534, 65534)
    for parent in [tmp_path, *tmp_path.parents][:4]:
        os.chmod(parent, 0o755)
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            os.write(writer, lab.build().name.encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    assert os.waitpid(child, 0)[1] == 0
    os.close(reader)
    [image] = lab.place.images()
    assert lab.place.tree(image).stat().st_uid == 65534
    check_with("e2fsck", "-f", "-n", str(lab.place.tree(image)))
    with mounted(lab.place.tree(image), kind="ext4") as top:
        assert owners_below(top) == {0}
        assert git("status", "--porcelain", cwd=top) == ""


@needs_ext4
def test_a_directory_that_mke2fs_would_need_hours_for_is_refused(lab: DiskLab) -> None:
    """EROFS has no such limit."""
    fast_import(lab.bare, [{b"d/%d" % number: (b"100644", b"") for number in range(10_001)}])
    lab.form = DiskForm.EXT4
    with pytest.raises(GitmirrorError, match="a directory has 10,001 entries, too many for mke2fs") as caught:
        lab.build()
    assert "use EROFS" in caught.value.hint


def test_without_e2fsprogs_the_refusal_says_what_to_install(lab: DiskLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing is left behind."""
    fast_import(lab.bare, [{b"a": (b"100644", b"1\n")}])
    lab.form = DiskForm.EXT4
    monkeypatch.setattr(ext4, "_PATH", "/nonexistent")
    with pytest.raises(GitmirrorError, match="mke2fs and debugfs of e2fsprogs are not installed"):
        lab.build()
    assert lab.place.images() == []
