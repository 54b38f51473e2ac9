"""Fixtures of the tests that run a serve beside an upstream."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.refresh.node import Node
from tests.support.serve import Serve
from tests.support.upstream import HttpUpstream


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """An appliance that refreshes only when it is told to; the tests of a module share it, each with its own repos."""
    place = tmp_path_factory.mktemp("node")
    with (
        HttpUpstream(place / "upstream") as upstream,
        Serve(place / "state", refresh={"interval": "1h", "stale_after": "2h", "timeout": "60s"}) as serve,
    ):
        serve.start()
        yield Node(upstream, serve)


@pytest.fixture
def names() -> Callable[[], str]:
    """Return what names repositories that no other test of the module has."""
    return _next_name


_count = iter(range(10**6))


def _next_name() -> str:
    return f"acme/repo-{next(_count)}"
