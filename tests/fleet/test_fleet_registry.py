"""One registry for three nodes: what an operator does on one holds on all."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.fleet import TestFleet
from tests.support.generate import add_commit, create_repository
from tests.support.gitutil import commit_files, git, wait_until
from tests.support.nats import NatsCluster
from tests.support.serve import Serve

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def nodes(module_nats: NatsCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestFleet]:
    """Three nodes that run; tests use names of their own."""
    with TestFleet(tmp_path_factory.mktemp("fleet"), module_nats) as fleet:
        yield fleet.start()


def upstream(directory: Path, name: str) -> str:
    """The URL of a new repository with one commit."""
    bare = create_repository(directory / f"{name}.git")
    add_commit(bare, "main", {"README": f"{name}\n"})
    return f"file://{bare}"


def entry_of(serve: Serve, name: str) -> dict[str, Any] | None:
    """The repository as `repos --json` prints it, or None."""
    return next((each for each in json.loads(serve.here("repos", "--json")) if each["name"] == name), None)


def has(serve: Serve, name: str, **wanted: Any) -> bool:
    """Whether a node has a repository with these values."""
    found = entry_of(serve, name)
    return found is not None and wanted.items() <= found.items()


def test_a_repository_added_on_one_is_fresh_on_all(nodes: TestFleet, tmp_path: Path) -> None:
    nodes["a"].cli("add-repo", upstream(tmp_path, "one"), "--name", "acme/one", "--interval", "1h")
    began = time.monotonic()
    for name in ("b", "c"):
        # An interval would be an hour, so that the first clone did not wait for one.
        assert nodes[name].wait_for_repo("acme/one", timeout=30)["state"] == "fresh"
    print(f"fresh on all nodes after {time.monotonic() - began:.2f} s")
    for serve in nodes.nodes.values():
        assert has(serve, "acme/one", interval=3600.0, source="cli")


def test_changes_and_removals_hold_everywhere(nodes: TestFleet, tmp_path: Path) -> None:
    url = upstream(tmp_path, "two")
    nodes["a"].cli("add-repo", url, "--name", "acme/two")
    nodes["b"].wait_for_repo("acme/two")
    nodes["b"].cli("disable", "acme/two")
    nodes.wait_all(lambda serve: has(serve, "acme/two", state="disabled"), "it is disabled")
    nodes["c"].cli("enable", "acme/two")
    nodes["a"].cli("add-repo", url, "--name", "acme/two", "--branch", "main", "--interval", "9s")
    nodes.wait_all(lambda serve: has(serve, "acme/two", branch="main", interval=9.0), "branch and interval")
    nodes["c"].wait_for_repo("acme/two")
    nodes["b"].cli("remove-repo", "acme/two")
    nodes.wait_all(lambda serve: entry_of(serve, "acme/two") is None, "it is removed")
    assert all(serve.mirror("acme/two").is_dir() for serve in nodes.nodes.values()), "mirrors stay"
    nodes["c"].cli("remove-repo", "acme/two", "--purge", "--yes")
    nodes.wait_all(lambda serve: not serve.mirror("acme/two").exists(), "its mirror is deleted")


def test_one_of_two_that_add_a_name_at_once_wins(nodes: TestFleet, tmp_path: Path) -> None:
    urls = {name: upstream(tmp_path, f"race-{name}") for name in nodes.nodes}
    done: dict[str, Any] = {}

    def add(node: str) -> None:
        done[node] = nodes[node].cli("add-repo", urls[node], "--name", "acme/race", "--no-wait", check=False)

    threads = [threading.Thread(target=add, args=(node,)) for node in nodes.nodes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [winner] = [node for node, result in done.items() if result.returncode == 0]
    for node, result in done.items():
        if node != winner:
            assert result.returncode == 2
            assert f"taken in the fleet by {urls[winner]}, registered on node {winner}" in result.stderr
    nodes.wait_all(lambda serve: has(serve, "acme/race", url=urls[winner]), "all have the winner's")


def test_a_second_node_that_adds_the_same_url_joins(nodes: TestFleet, tmp_path: Path) -> None:
    url = upstream(tmp_path, "same")
    for name in ("a", "b"):
        nodes[name].cli("add-repo", url, "--name", "acme/same")
    nodes["c"].wait_for_repo("acme/same")
    other = upstream(tmp_path, "same-other")
    refused = nodes["c"].cli("add-repo", other, "--name", "acme/same", check=False)
    assert refused.returncode == 2 and "is taken in the fleet by" in refused.stderr


def test_a_purge_ends_what_another_node_recorded(nodes: TestFleet, tmp_path: Path) -> None:
    nodes["a"].cli("add-repo", upstream(tmp_path, "purged"), "--name", "acme/purged")
    nodes["b"].wait_for_repo("acme/purged")
    clone = nodes["b"].clone(tmp_path / "clone", "acme/purged")
    commit_files(clone, {"x": "y"}, "A turn")
    git("push", "--quiet", nodes["b"].git_url + "/acme/purged", "HEAD:refs/agents/s1", cwd=clone)
    assert json.loads(nodes["b"].here("sessions", "--repo", "acme/purged", "--json"))
    nodes["a"].cli("remove-repo", "acme/purged", "--purge", "--yes")
    nodes.wait_all(lambda serve: not serve.mirror("acme/purged").exists(), "its mirror is deleted")
    nodes.wait_all(lambda serve: not json.loads(serve.here("sessions", "--json")), "its session ended", 60)


def test_a_token_is_of_one_registration(nodes: TestFleet, tmp_path: Path) -> None:
    url = upstream(tmp_path, "token")
    nodes["a"].cli("add-repo", url, "--name", "acme/token")
    nodes["b"].wait_for_repo("acme/token")
    nodes["b"].cli("token", "issue", "--repo", "acme/token", "--ttl", "1h")

    def tokens() -> list[dict[str, Any]]:
        return [each for each in json.loads(nodes["b"].here("token", "list", "--json")) if each["repo"] == "acme/token"]

    assert [each["revoked_at"] for each in tokens()] == [None]
    # B sees both at once if it is away meanwhile; here it may see one after the other.
    nodes["b"].signal(signal.SIGSTOP)
    nodes["a"].cli("remove-repo", "acme/token")
    nodes["a"].cli("add-repo", url, "--name", "acme/token", "--interval", "5s")
    nodes["b"].signal(signal.SIGCONT)
    wait_until(lambda: has(nodes["b"], "acme/token", interval=5.0), timeout=60, message="it is registered again")
    assert [each["revoked_at"] is None for each in tokens()] == [False]
