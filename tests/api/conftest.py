"""A running API of test operations."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.core.layout import Layout
from tests.api.server import ApiServer


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """A state directory whose path alone is longer than a unix socket's may be."""
    state = tmp_path / ("long-" * 20) / "state"
    state.mkdir(parents=True)
    assert len(os.fsencode(Layout(state).control_socket)) > 107
    return Layout(state)


@pytest.fixture
def server(layout: Layout) -> Iterator[ApiServer]:
    """A running one."""
    made = ApiServer(layout)
    yield made
    made.close()
