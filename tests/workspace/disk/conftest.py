"""A repository to build disks of, and a node that leases them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.gitutil import git
from tests.workspace.disk.disk_lab import DiskLab
from tests.workspace.disk.leasing import Bench, benches


@pytest.fixture
def lab(tmp_path: Path) -> DiskLab:
    """An empty bare repository, and a place for its disks."""
    bare = tmp_path / "bare.git"
    git("init", "--quiet", "--bare", "--initial-branch=main", str(bare))
    return DiskLab(bare, tmp_path / "disks")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A node without repositories."""
    with benches(tmp_path) as made:
        yield made
