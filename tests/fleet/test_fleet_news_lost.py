"""The holder is lost, or NATS, or a neighbour is of no use: nothing is later than an interval."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import nats
import pytest

from appliance.core.fleet.messages import News
from appliance.core.fleet.names import FleetNames
from appliance.core.fleet.wire import write
from tests.conftest import WIDGETS
from tests.fleet.news import NewsFleet, costs_at_best, news_fleet, verified_at
from tests.observability.conftest import repo_of
from tests.support.fleet import wait_connected
from tests.support.gitutil import wait_until
from tests.support.nats import NatsCluster

pytestmark = pytest.mark.slow

INTERVAL = 2.0
SOON = 20.0
"""Seconds: a few intervals, on a machine that is busy with other tests. What is stuck takes a minute or more."""


@pytest.fixture(scope="module")
def three(
    module_nats: NatsCluster, generated_bare: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[NewsFleet]:
    """Three nodes that refresh every two seconds, for the tests of this module."""
    directory = tmp_path_factory.mktemp("lively")
    with news_fleet(directory, module_nats, generated_bare, interval=f"{INTERVAL:g}s") as fleet:
        for serve in fleet.fleet.nodes.values():
            serve.keep_ports()
        yield fleet


@pytest.fixture
def lively(three: NewsFleet) -> Iterator[NewsFleet]:
    """All of them run and have the same, whatever the test before did to one of them or to the server."""
    for serve in three.fleet.nodes.values():
        if not serve.running:
            serve.start()
    three.wait_equal(timeout=SOON)
    yield three
    [server] = three.fleet.nats.servers
    if server.process is None:
        server.start()
    server.thaw()
    for serve in three.fleet.nodes.values():
        if serve.running:
            serve.signal(signal.SIGCONT)


def test_three_nodes_cost_an_upstream_what_one_does(lively: NewsFleet) -> None:
    wait_until(lambda: lively.holder(), message="one holds the lease")

    def more_than_one_does() -> int:
        lively.upstream.forget()
        began = time.monotonic()
        seen = {name: {repo_of(serve)["verified_at"]} for name, serve in lively.fleet.nodes.items()}

        def all_were_verified() -> bool:
            for name, serve in lively.fleet.nodes.items():
                seen[name].add(repo_of(serve)["verified_at"])
            return all(len(times) >= 6 for times in seen.values())

        wait_until(all_were_verified, interval=0.1, message="each node was verified five times more")
        asked = lively.asked()
        # An interval is a tenth shorter at most.
        return asked - int((time.monotonic() - began) / (0.9 * INTERVAL) + 1)

    costs_at_best(0, more_than_one_does)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_another_takes_over_from_a_holder_that_is_lost(lively: NewsFleet, number: signal.Signals) -> None:
    lost = lively.holder()
    others = lively.others(lost)
    lively[lost].signal(number)
    commit, began = lively.push(), time.monotonic()
    for name in others:
        lively[name].wait_for_ref(WIDGETS, "refs/heads/main", commit, timeout=30)
    print(f"on the others after {time.monotonic() - began:.2f} s")
    assert lively.holder() in others
    if number == signal.SIGSTOP:
        lively[lost].signal(signal.SIGCONT)
        lively[lost].wait_for_ref(WIDGETS, "refs/heads/main", commit, timeout=SOON)


def test_a_webhook_while_the_holder_is_frozen(lively: NewsFleet) -> None:
    lost = lively.holder()
    other = lively.others(lost)[0]
    lively[lost].signal(signal.SIGSTOP)
    commit = lively.push()
    lively.webhook(other)
    for name in lively.others(lost):
        lively[name].wait_for_ref(WIDGETS, "refs/heads/main", commit, timeout=SOON)
    lively[lost].signal(signal.SIGCONT)


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_without_nats_each_node_asks_for_itself(lively: NewsFleet, how: str) -> None:
    [server] = lively.fleet.nats.servers
    if how == "killed":
        server.stop()
    else:
        server.freeze()
    lively.push()
    began = time.monotonic()
    lively.wait_equal(timeout=30)
    print(f"on all nodes after {time.monotonic() - began:.2f} s")
    if how == "killed":
        server.start()
    else:
        server.thaw()
    lively.fleet.nats.wait()
    lively.push()
    lively.wait_equal(timeout=SOON)
    lively.upstream.forget()

    def is_one() -> bool:
        lively.upstream.forget()
        time.sleep(3 * INTERVAL)
        return lively.asked() <= 5

    wait_until(is_one, timeout=60, message="one node asks for all again")


def test_two_nodes_that_ask_each_other_do_not_wait_for_each_other(
    module_nats: NatsCluster, generated_bare: Path, tmp_path: Path
) -> None:
    """The holder hears old news of a node, as of one that was frozen, and asks it; that one asks the holder."""
    (tmp_path / "circle").mkdir()
    with news_fleet(tmp_path / "circle", module_nats, generated_bare, nodes=("a", "b")) as fleet:
        holder = fleet.holder()
        [other] = fleet.others(holder)
        # So that it has to look before it answers.
        fleet[other].restart()
        wait_connected(fleet[other])
        before = verified_at(fleet[holder])
        old = News(other, WIDGETS, fleet.upstream.url(WIDGETS), "0" * 64, 0.0, moved=True, next=3600.0)

        async def tell() -> None:
            client = await nats.connect(module_nats.urls)
            await client.publish(FleetNames(fleet.name).news, write(old))
            await client.drain()

        asyncio.run(tell())
        wait_until(lambda: verified_at(fleet[holder]) != before, timeout=SOON, message="the holder has an answer")
        commit = fleet.push()
        fleet.webhook(other)
        for name in (holder, other):
            fleet[name].wait_for_ref(WIDGETS, "refs/heads/main", commit, timeout=SOON)


def test_a_restarted_node_is_behind_nobody(lively: NewsFleet) -> None:
    lost = lively.holder()
    lively[lost].terminate()
    lively.push()
    lively.wait_equal(timeout=SOON)
    lively[lost].start()
    lively.wait_equal(timeout=SOON)
