"""A disk with submodules and LFS files is what a person's clone is."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from appliance.core.workspace.disk.images import DiskForm
from appliance.core.workspace.disk.order import LargeFile
from tests.workspace.disk.disk_lab import DiskLab, fast_import
from tests.workspace.disk.whole_lab import WholeLab, check_whole, pointer


@pytest.fixture
def whole(lab: DiskLab, tmp_path: Path) -> WholeLab:
    """Three levels of submodules, and an LFS file of 3 MB."""
    made = WholeLab(lab, lab.bare.parent, random.Random(1).randbytes(3_000_001))
    made.make()
    return made


@pytest.mark.slow
@pytest.mark.parametrize("history", ["full", "tip"])
@pytest.mark.parametrize("form", [DiskForm.EROFS, DiskForm.SINGLE])
def test_three_levels_and_lfs_files_equal_a_persons_clone(
    whole: WholeLab, tmp_path: Path, history: str, form: DiskForm
) -> None:
    whole.lab.history, whole.lab.form = history, form
    workspace = whole.lab.unpack(whole.build(), tmp_path / "disk")
    check_whole(workspace, whole.clone(tmp_path / "clone"), history=history)


@pytest.mark.slow
def test_objects_count_as_used_as_long_as_an_image_has_them(whole: WholeLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A generation goes on while most of it belongs to images, also to older ones, and no longer without these."""
    monkeypatch.setattr("appliance.core.workspace.disk.worker.SLACK", 10)
    generations = []
    for number in range(9):  # It is looked at again after it has grown by a quarter.
        content = random.Random(number).randbytes(3_000_000)
        whole.large = content
        fast_import(whole.lab.bare, [{b"data/model.bin": (b"100644", pointer(content).encode())}])
        stored = whole.directory / f"object-{number}"
        stored.write_bytes(content)
        own = (LargeFile("data/model.bin", hashlib.sha256(content).hexdigest(), str(stored)),)
        if number == 8:
            for image in whole.lab.place.images():
                whole.lab.place.remove(image)
        generations.append(whole.build(large=own).generation)
    assert generations[:8] == [generations[0]] * 8 and generations[8] != generations[0]
