"""A repository with over 4,000 refs, which threads compare, some named in no UTF-8, goes from node to node."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.core.git.ref_sets import MANY
from tests.conftest import WIDGETS
from tests.fleet.news import news_fleet
from tests.support.gitutil import git, git_bytes
from tests.support.nats import NatsCluster

pytestmark = pytest.mark.slow


def test_more_refs_than_the_loop_compares(module_nats: NatsCluster, generated_bare: Path, tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    with news_fleet(tmp_path / "many", module_nats, generated_bare, nodes=("a", "b"), start=False) as fleet:
        path = fleet.upstream.path(WIDGETS)
        commit = git("rev-parse", "main", cwd=path)
        # As a file, because git takes long for so many loose refs.
        listed = git_bytes("for-each-ref", "--format=%(objectname) %(refname)", cwd=path)[1].splitlines()
        listed += [f"{commit} refs/heads/many/{number}".encode() for number in range(MANY)]
        listed.append(commit.encode() + b" refs/tags/caf\xe9")
        listed.sort(key=lambda line: line.split(b" ", 1)[1])
        (path / "packed-refs").write_bytes(b"# pack-refs with: sorted \n" + b"\n".join(listed) + b"\n")
        fleet["a"].start()
        fleet["a"].wait_for_repo(WIDGETS)
        # A node whose neighbour is slow asks the upstream itself, so how often that happens would depend on the load.
        fleet.upstream.refuse()
        fleet["b"].start()
        fleet["b"].wait_for_repo(WIDGETS)
        fleet.wait_equal(timeout=60)
        fleet.upstream.restore()
        fleet.push()
        fleet.webhook("b")
        fleet.wait_equal(timeout=60)
