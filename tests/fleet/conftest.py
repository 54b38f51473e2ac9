"""Fixtures of the fleet: NATS servers, and nodes on them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fleet import TestFleet
from tests.support.nats import WHY_NOT, NatsCluster


@pytest.fixture(scope="module")
def module_nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsCluster]:
    """One server for the tests of a module that give their fleets different names."""
    if WHY_NOT:
        pytest.skip(WHY_NOT)
    with NatsCluster(tmp_path_factory.mktemp("nats")) as cluster:
        yield cluster


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[NatsCluster]:
    """One server, for a test that ends or fills it."""
    if WHY_NOT:
        pytest.skip(WHY_NOT)
    with NatsCluster(tmp_path / "nats") as cluster:
        yield cluster


@pytest.fixture
def fleet(tmp_path: Path, nats: NatsCluster) -> Iterator[TestFleet]:
    """Three nodes on one server, not started."""
    with TestFleet(tmp_path, nats) as nodes:
        yield nodes
