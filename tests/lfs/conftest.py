"""Fixtures of the tests of LFS."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.core.lfs import objects
from tests.lfs.lab import LfsLab
from tests.support.lfs_server import LfsServer


@pytest.fixture(scope="module")
def module_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LfsServer]:
    """The one of all tests of a module."""
    with LfsServer(tmp_path_factory.mktemp("server")) as made:
        yield made


@pytest.fixture
def server(module_server: LfsServer) -> LfsServer:
    """An LFS server without a git upstream behind it, and without objects."""
    for path in module_server.place.glob("*/*"):
        path.unlink()
    module_server.reset()
    module_server.forget()
    return module_server


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LfsLab]:
    """The LFS room, which makes no pauses between its attempts."""
    monkeypatch.setattr(objects, "PAUSE", 0.01)
    made = LfsLab(tmp_path / "lab")
    yield made
    made.close()
