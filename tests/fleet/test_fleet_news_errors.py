"""What an upstream refuses to one node, all nodes know; what only one node cannot reach, another one asks for."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from nats.js.errors import NoKeysError

from tests.conftest import WIDGETS
from tests.fleet.news import NewsFleet, costs_at_best, news_fleet
from tests.observability.conftest import repo_of
from tests.support.gitutil import git, wait_until
from tests.support.nats import NatsCluster

pytestmark = pytest.mark.slow

Make = Callable[..., NewsFleet]


@pytest.fixture
def make(
    module_nats: NatsCluster, generated_bare: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Make]:
    """Makes a fleet of three nodes with a name of its own."""
    with ExitStack() as stack:

        def made(interval: str = "2s", **options: Any) -> NewsFleet:
            directory = tmp_path / f"f{abs(hash(request.node.name)) % 10**8}"
            directory.mkdir()
            return stack.enter_context(news_fleet(directory, module_nats, generated_bare, interval=interval, **options))

        yield made


@pytest.fixture(scope="module")
def hourly(
    module_nats: NatsCluster, generated_bare: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[NewsFleet]:
    """Three nodes that look at an upstream when they are told to, for several tests."""
    with news_fleet(tmp_path_factory.mktemp("hourly"), module_nats, generated_bare) as fleet:
        yield fleet


def error_of(fleet: NewsFleet, name: str) -> str | None:
    """The error word of a node's status."""
    error: str | None = repo_of(fleet[name])["error"]
    return error


def test_all_nodes_say_that_the_upstream_is_gone(make: Make) -> None:
    fleet = make()
    fleet.upstream.on(WIDGETS).not_found = True
    for name in fleet.fleet.nodes:
        wait_until(lambda: error_of(fleet, name) == "not-found", timeout=60, message=f"{name} says so")  # noqa: B023

    def cost() -> int:
        fleet.upstream.forget()
        time.sleep(6)
        return fleet.asked()

    # Each look that gets a 404 is one request; three nodes by themselves take three times as many.
    costs_at_best(4, cost)
    fleet.upstream.reset()
    fleet.push()
    fleet.wait_equal(timeout=60)
    for name in fleet.fleet.nodes:
        wait_until(lambda: error_of(fleet, name) is None, timeout=60, message=f"{name} is well")  # noqa: B023


def test_nobody_goes_around_a_retry_after(hourly: NewsFleet) -> None:
    fleet = hourly
    holder = fleet.holder()
    faults = fleet.upstream.on(WIDGETS)
    faults.status, faults.retry_after = 429, 600
    fleet.webhook(holder)
    for name in fleet.fleet.nodes:
        wait_until(lambda: error_of(fleet, name) == "rate-limited", timeout=60, message=f"{name} says so")  # noqa: B023
    asked = fleet.asked()
    for name in fleet.fleet.nodes:
        fleet.webhook(name)
    time.sleep(1)
    assert fleet.asked() == asked
    fleet.upstream.reset()
    # An operator insists, on any node, and then the others are free, too.
    fleet.push()
    fleet[fleet.others(holder)[0]].cli("refresh", WIDGETS)
    fleet.wait_equal(timeout=60)


def test_a_holder_that_cannot_reach_the_upstream_gives_way(make: Make) -> None:
    fleet = make(start=False)
    cut_off = fleet["a"]
    cut_off.env |= {"no_proxy": "", "http_proxy": "http://127.0.0.1:1"}
    cut_off.start()
    wait_until(lambda: error_of(fleet, "a") is not None, timeout=60, message="a cannot clone")
    fleet["b"].start()
    fleet["c"].start()
    # The first one, too, which fetches from a neighbour what it cannot get from the upstream.
    fleet.wait_equal(timeout=60)
    commit = fleet.push()
    cut_off.wait_for_ref(WIDGETS, "refs/heads/main", commit, timeout=60)
    assert error_of(fleet, "a") is None


def test_first_clones_come_from_the_node_that_has_it(make: Make) -> None:
    fleet = make("1h", start=False)
    fleet["a"].start().wait_for_repo(WIDGETS)
    fleet.upstream.refuse()
    fleet["b"].start()
    fleet["c"].start()
    fleet.wait_equal(timeout=60)
    for name in ("b", "c"):
        fleet[name].wait_for_repo(WIDGETS, timeout=60)
    fleet.upstream.restore()


def test_a_repository_that_all_get_at_once_is_cloned_once(hourly: NewsFleet, generated_bare: Path) -> None:
    fleet = hourly
    numbers = itertools.count()

    def cost() -> int:
        name = f"acme/other-{next(numbers)}"
        fleet.upstream.add(name, generated_bare)
        for serve in fleet.fleet.nodes.values():
            serve.here("add-repo", fleet.upstream.url(name), "--no-wait")
        fleet.wait_equal(name, timeout=60)
        return fleet.asked(name)

    costs_at_best(2, cost)


def test_an_empty_repository(hourly: NewsFleet) -> None:
    fleet = hourly
    fleet.upstream.add("acme/empty")
    for serve in fleet.fleet.nodes.values():
        serve.here("add-repo", fleet.upstream.url("acme/empty"), "--no-wait")
    for serve in fleet.fleet.nodes.values():
        serve.wait_for_repo("acme/empty", timeout=60)
    path = fleet.upstream.path("acme/empty")
    tree = git("hash-object", "-t", "tree", "-w", "--stdin", cwd=path, input="")
    commit = git("commit-tree", tree, "-m", "first", cwd=path)
    git("update-ref", "refs/heads/trunk", commit, cwd=path)
    git("symbolic-ref", "HEAD", "refs/heads/trunk", cwd=path)
    fleet.webhook("b", "trunk", "acme/empty")
    fleet.wait_equal("acme/empty", timeout=60)


def test_one_name_for_two_upstreams(make: Make, generated_bare: Path) -> None:
    """Each node mirrors its own, and nobody waits for the other."""
    fleet = make("2s")
    for name in ("one/thing", "two/thing"):
        fleet.upstream.add(name, generated_bare)
    first, second = fleet.push(name="one/thing", text="one"), fleet.push(name="two/thing", text="two")
    # By their config, because `add-repo` of the second is refused.
    for node, name in (("a", "one/thing"), ("b", "two/thing")):
        lines = ["[[repos]]", f'url = "{fleet.upstream.url(name)}"', 'name = "x/thing"']
        fleet[node].config.write_text(fleet[node].config.read_text() + "\n".join(lines) + "\n")
        fleet[node].reload()
    for node, commit in (("a", first), ("b", second)):
        fleet[node].wait_for_ref("x/thing", "refs/heads/main", commit, timeout=60)
    first = fleet.push(name="one/thing", text="one again")
    fleet["a"].wait_for_ref("x/thing", "refs/heads/main", first, timeout=60)
    assert git("rev-parse", "main", cwd=fleet["b"].mirror("x/thing")) == second


def test_a_private_repository_is_asked_for_by_each_node(make: Make, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("correct horse\n")
    token.chmod(0o600)
    fleet = make("1h", start=False)
    entry = {"url": fleet.upstream.url("acme"), "token_file": str(token), "username": "reader"}
    fleet.upstream.on(WIDGETS).require_password = True
    for serve in fleet.fleet.nodes.values():
        serve.config.write_text(
            serve.config.read_text()
            + "[[credentials]]\n"
            + "\n".join(f'{key} = "{value}"' for key, value in entry.items())
        )
        serve.start()
        serve.wait_for_repo(WIDGETS)
    asked = {each.user for each in fleet.upstream.requests if each.repo == WIDGETS}
    assert "reader" in asked
    assert fleet.asked() >= 6

    async def keys(context: Any) -> list[str]:
        bucket = await context.key_value(f"gitmirror-{fleet.name}-leases")
        try:
            return list(await bucket.keys())
        except NoKeysError:
            return []

    assert fleet.fleet.nats.ask(keys) == []
