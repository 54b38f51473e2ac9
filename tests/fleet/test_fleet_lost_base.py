"""The upstream loses what a session began from, and then the node dies that recorded the session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import WIDGETS
from tests.support.fleet import TestFleet
from tests.support.fleet_users import Pushing, commits_of
from tests.support.generate import add_commit
from tests.support.gitutil import fsck, git, wait_until
from tests.support.nats import NatsCluster
from tests.support.serve import Serve
from tests.support.upstream import HttpUpstream

pytestmark = pytest.mark.slow


@pytest.fixture
def three(tmp_path: Path, nats: NatsCluster, upstream: HttpUpstream) -> Iterator[TestFleet]:
    """Nodes of which `b` was down while the upstream had the commit from which `a` recorded."""
    with TestFleet(tmp_path, nats, refresh={"interval": "1h", "stale_after": "1d"}) as fleet:
        fleet.start()
        fleet["a"].cli("add-repo", upstream.url(WIDGETS), "--name", WIDGETS)
        fleet.wait_all(lambda serve: serve.wait_for_repo(WIDGETS), "it is cloned")
        yield fleet


def record_on_lost_branch(three: TestFleet, upstream: HttpUpstream, place: Path, *, keeps: bool) -> str:
    """A turn on a commit of the branch, which is then forced back. With `keeps`, the upstream gives it by its id."""
    a, b = three["a"], three["b"]
    b.kill()
    bare = upstream.path(WIDGETS)
    before = git("rev-parse", "main", cwd=bare)
    lost = add_commit(bare, "main", {"soon-gone": "x\n"})
    for name in ("a", "c"):
        three[name].cli("refresh", WIDGETS)
        assert git("rev-parse", "main", cwd=three[name].mirror(WIDGETS)) == lost
    guest = Pushing(place / "guest", bare)
    turn = guest.commit("on what is lost")
    assert guest.push(a, WIDGETS, "s", turn)[0]
    wait_until(lambda: knows(three["c"], "s", turn), message="the turn is listed")
    git("update-ref", "refs/heads/main", before, cwd=bare)
    if keeps:
        git("config", "uploadpack.allowAnySHA1InWant", "true", cwd=bare)
    else:
        git("-c", "gc.reflogExpire=now", "-c", "gc.reflogExpireUnreachable=now", "reflog", "expire", "--expire=now",
            "--all", cwd=bare)  # fmt: skip
        git("gc", "--quiet", "--prune=now", cwd=bare)
    for name in ("a", "c"):
        three[name].cli("refresh", WIDGETS)
    a.kill()
    return turn


def knows(serve: Serve, session: str, turn: str) -> bool:
    try:
        return commits_of(serve, WIDGETS, session) == [turn]
    except Exception:
        return False


def fetched(serve: Serve, place: Path) -> str:
    """What a guest gets of the session."""
    git("init", "-q", "--bare", str(place))
    git("fetch", "-q", f"{serve.git_url}/{WIDGETS}", "refs/agents/s", cwd=place)
    return git("rev-parse", "FETCH_HEAD", cwd=place)


def test_another_node_still_has_it(three: TestFleet, upstream: HttpUpstream, tmp_path: Path) -> None:
    turn = record_on_lost_branch(three, upstream, tmp_path, keeps=False)
    b = three["b"].start()
    wait_until(lambda: knows(b, "s", turn), message="the turn is listed")
    assert fetched(b, tmp_path / "reader") == turn
    fsck(b.mirror(WIDGETS))


def test_the_upstream_gives_it_by_its_id(three: TestFleet, upstream: HttpUpstream, tmp_path: Path) -> None:
    """As GitHub does with commits that no branch has any more."""
    turn = record_on_lost_branch(three, upstream, tmp_path, keeps=True)
    three["c"].kill()
    b = three["b"].start()
    wait_until(lambda: knows(b, "s", turn), message="the turn is listed")
    assert fetched(b, tmp_path / "reader") == turn
    fsck(b.mirror(WIDGETS))
