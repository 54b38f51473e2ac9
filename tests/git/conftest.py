"""Fixtures of the tests that work on a mirror directly."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.git.lab import Lab


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """The git and refresh rooms on a scratch state directory."""
    made = Lab(tmp_path / "lab")
    yield made
    made.close()
