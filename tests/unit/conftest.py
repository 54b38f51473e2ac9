"""Fixtures of the tests of single rooms."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.upstream import GitDaemonUpstream


@pytest.fixture
def hub(tmp_path: Path, generated_bare: Path) -> Iterator[GitDaemonUpstream]:
    """A real git daemon that takes pushes."""
    with GitDaemonUpstream(tmp_path / "hub", push=True) as upstream:
        upstream.add("acme/widgets", generated_bare)
        yield upstream
