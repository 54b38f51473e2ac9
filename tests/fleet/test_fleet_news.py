"""N nodes cost an upstream what one does, and a push with one webhook is on all of them at once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import WIDGETS
from tests.fleet.news import NewsFleet, costs_at_best, news_fleet, seconds_since_look
from tests.observability.conftest import repo_of
from tests.support.gitutil import fsck, git, wait_until
from tests.support.nats import NatsCluster

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def quiet(
    module_nats: NatsCluster, generated_bare: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[NewsFleet]:
    """Three nodes that look upstream when they are told to."""
    with news_fleet(tmp_path_factory.mktemp("quiet"), module_nats, generated_bare) as fleet:
        yield fleet


@pytest.mark.parametrize("node", ["a", "b", "c"])
def test_one_webhook_to_any_node_is_one_fetch(quiet: NewsFleet, node: str) -> None:
    def cost() -> int:
        # Right after a look, a node cannot know of an answer that was long under way whether it tells of a later one,
        # and has the holder look again.
        wait_until(lambda: all(seconds_since_look(each) > 1 for each in quiet.fleet.nodes.values()), message="all rest")
        before = quiet.asked()
        commit, began = quiet.push(text=f"for {node}"), time.monotonic()
        quiet.webhook(node)
        quiet.wait_equal(timeout=30)
        print(f"on all nodes after {time.monotonic() - began:.2f} s")
        for serve in quiet.fleet.nodes.values():
            assert git("rev-parse", "main", cwd=serve.mirror(WIDGETS)) == commit
            fsck(serve.mirror(WIDGETS))
        return quiet.asked() - before

    # One listing, and one fetch, which lists them again.
    costs_at_best(2, cost)


def test_a_webhook_that_brings_nothing_is_one_listing(quiet: NewsFleet) -> None:
    def cost() -> int:
        before = quiet.asked()
        times = {name: repo_of(serve)["verified_at"] for name, serve in quiet.fleet.nodes.items()}
        quiet.webhook("b")
        for name, serve in quiet.fleet.nodes.items():
            wait_until(lambda: repo_of(serve)["verified_at"] > times[name], timeout=60, message=f"{name} is verified")  # noqa: B023
        return quiet.asked() - before

    costs_at_best(1, cost)


def test_what_an_operator_asks_for_is_looked_for_upstream(quiet: NewsFleet) -> None:
    commit = quiet.push(text="for an operator")
    for name, serve in quiet.fleet.nodes.items():
        before = quiet.asked()
        [document] = serve.cli_json("refresh", WIDGETS)
        assert quiet.asked() > before, name
        if name == "a":
            [moved] = document["moved"]
            assert (moved["ref"], moved["new"]) == ("refs/heads/main", commit)


def test_branches_come_and_go_and_head_follows(quiet: NewsFleet) -> None:
    path = quiet.upstream.path(WIDGETS)
    quiet.push("topic")
    quiet.push("caf\N{LATIN SMALL LETTER E WITH ACUTE}/bräne")
    git("symbolic-ref", "HEAD", "refs/heads/topic", cwd=path)
    quiet.webhook("c", "topic")
    quiet.wait_equal(timeout=60)
    git("symbolic-ref", "HEAD", "refs/heads/main", cwd=path)
    git("update-ref", "-d", "refs/heads/topic", cwd=path)
    quiet.push("topic/below")
    quiet.webhook("a")
    quiet.wait_equal(timeout=60)
