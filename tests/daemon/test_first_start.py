"""The first start of a node: nothing is there yet, and nothing is missing."""

from __future__ import annotations

from tests.conftest import WIDGETS, ServeFactory
from tests.support.upstream import HttpUpstream


def test_nothing_is_warned_of(serve_factory: ServeFactory, upstream: HttpUpstream) -> None:
    """Nothing can be prepared of a repository before its first clone, also if its branch is known before."""
    with serve_factory(repos=[{"url": upstream.url(WIDGETS), "branch": "main"}]).start() as serve:
        serve.wait_for_repo(WIDGETS)
        serve.terminate()
        assert [line for line in serve.log().splitlines() if " WARNING " in line or " ERROR " in line] == []
