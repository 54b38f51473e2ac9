"""A guest asks for sessions in a storm: names that nobody knows, and turns that cannot be had. Others are served."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import WIDGETS
from tests.fleet.away import Elsewhere
from tests.support.gitutil import git, git_result, wait_until
from tests.support.nats import NatsCluster
from tests.support.serve import Serve
from tests.support.upstream import HttpUpstream

pytestmark = pytest.mark.slow

LOST = 24
"""Sessions whose bundles nobody has."""


@pytest.fixture
def away(tmp_path: Path, nats: NatsCluster, upstream: HttpUpstream) -> Iterator[Elsewhere]:
    """Node `b`, and what node `a` stored before it died."""
    fleet = {"servers": nats.urls, "node": "b", "name": "storm"}
    with Serve(tmp_path / "b", repos=[upstream.url(WIDGETS)], fleet=fleet).start() as serve:
        serve.wait_for_repo(WIDGETS)
        wait_until(lambda: " as b" in serve.log(), message="the fleet is there")
        yield Elsewhere.of(serve, nats, upstream, "storm", tmp_path / "clone")


def test_others_are_served(away: Elsewhere, tmp_path: Path) -> None:
    serve = away.serve
    for number in range(LOST):
        away.record(f"lost-{number}", away.commit(anew=True), stored=False)
    turn = away.commit(anew=True)
    away.record("good", turn)
    url = f"{serve.git_url}/{WIDGETS}"
    for name in ("storm", "reader"):
        git("init", "-q", "--bare", str(tmp_path / name))

    def ask(session: str) -> str:
        """What git says that asked for a session in vain."""
        code, _, said = git_result("fetch", "-q", url, f"refs/agents/{session}", cwd=tmp_path / "storm")
        assert code, f"{session} is there"
        return str(said)

    with ThreadPoolExecutor(16) as pool:
        unknown = [pool.submit(ask, f"no-such-{number}") for number in range(100)]
        lost = [pool.submit(ask, f"lost-{number}") for number in range(LOST)]
        began = time.monotonic()
        git("fetch", "-q", url, "refs/agents/good", cwd=tmp_path / "reader")
        took = time.monotonic() - began
        print(f"the other guest waited {took:.2f} s")
        assert git("rev-parse", "FETCH_HEAD", cwd=tmp_path / "reader") == turn
        assert all("couldn't find remote ref" in each.result() for each in unknown)
        assert all("was recorded on node a and cannot be fetched now" in each.result() for each in lost)
    assert took < 20
