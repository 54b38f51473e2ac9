"""Which shape `auto` is."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.core.git.mirror import Mirror
from appliance.core.workspace import history
from appliance.core.workspace.history import WHOLE_BELOW, History, choose
from appliance.core.workspace.shape_choice import AUTO, history_for
from tests.git.lab import Lab
from tests.support.generate import copy_repository
from tests.support.gitutil import git

GIB = 2**30


@pytest.mark.parametrize(
    ("size", "before", "shape"),
    [
        (0, None, History.FULL),
        (WHOLE_BELOW - 1, None, History.FULL),
        (WHOLE_BELOW, None, History.TREES),
        (WHOLE_BELOW * 105 // 100, History.FULL, History.FULL),
        (WHOLE_BELOW * 105 // 100, History.TREES, History.TREES),
        (2 * GIB - 1, None, History.TREES),
        (2 * GIB, None, History.TIP),
        (2 * GIB * 105 // 100, History.TREES, History.TREES),
        (2 * GIB * 105 // 100, History.TIP, History.TIP),
        (3 * GIB, History.FULL, History.TIP),
    ],
)
def test_the_size_decides_and_a_repack_does_not_change_it_back_and_forth(
    size: int, before: History | None, shape: History
) -> None:
    """Whole, then without old blobs, then the tip; a tenth above a limit the shape stays."""
    assert choose(size, 2 * GIB, before) is shape


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """The room that runs git."""
    made = Lab(tmp_path / "state")
    yield made
    made.close()


def test_the_history_of_the_branch_is_measured_not_the_mirror(
    lab: Lab, generated_bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What other branches have does not count, and the setting wins over any size."""
    bare = copy_repository(generated_bare, tmp_path / "widgets.git")
    mirror, tip = Mirror(bare, lab.git), git("rev-parse", "main", cwd=bare)
    size = int(git("rev-list", "--objects", "--disk-usage", tip, cwd=bare))

    def shape(place: str, whole: int, below: int, setting: str = AUTO) -> History:
        monkeypatch.setattr(history, "WHOLE_BELOW", whole)
        return asyncio.run(history_for(setting, below, mirror, tmp_path / place, tip))

    assert shape("a", size + 1, 10 * size) is History.FULL
    assert shape("b", size, 10 * size) is History.TREES
    assert shape("c", size // 2, size) is History.TIP
    assert shape("c", size // 2, size, "full") is History.FULL
    # It is remembered, so the same limits give the same shape.
    assert shape("c", size // 2, size) is History.TIP
