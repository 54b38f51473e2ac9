"""A disk with submodules and LFS files is what a person's clone is."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from appliance.core.workspace.disk.images import DiskForm
from tests.workspace.disk.disk_lab import DiskLab
from tests.workspace.disk.whole_lab import WholeLab, check_whole


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
