"""A repository to build disks of."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.gitutil import git
from tests.workspace.disk.disk_lab import DiskLab


@pytest.fixture
def lab(tmp_path: Path) -> DiskLab:
    """An empty bare repository, and a place for its disks."""
    bare = tmp_path / "bare.git"
    git("init", "--quiet", "--bare", "--initial-branch=main", str(bare))
    return DiskLab(bare, tmp_path / "disks")
