"""Who asks the upstream of a repository, by compare-and-set on a real bucket."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from appliance.core.config.fleet import FleetConfig
from appliance.core.fleet import leases as rules
from appliance.core.fleet.leases import Leases, lease_key
from appliance.core.fleet.link import FleetAway, FleetLink
from appliance.core.models import Repo
from tests.support.nats import NatsCluster

REPO = Repo(1, "acme/widgets", "https://example.com/acme/widgets", None, "cli", None, True, 0.0)


async def together(nats: NatsCluster, fleet: str, *nodes: str, work: Callable[..., Awaitable[None]]) -> None:
    """Does `work` with the leases of several nodes."""
    links = [FleetLink(FleetConfig(servers=tuple(nats.urls), name=fleet, node=node)) for node in nodes]
    running = [asyncio.create_task(link.run()) for link in links]
    try:
        async with asyncio.timeout(60):
            for link in links:
                await link.wait_up()
        await work(*(Leases(link) for link in links))
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def test_one_lease_for_one_upstream() -> None:
    assert lease_key(REPO) == lease_key(replace(REPO, id=7, url="https://EXAMPLE.com/acme/widgets.git"))
    assert lease_key(REPO) != lease_key(replace(REPO, url="https://example.com/other/widgets"))
    assert lease_key(replace(REPO, name="a/.b")).startswith("a/=2Eb.")


@pytest.mark.slow
def test_of_two_nodes_one_gets_it_and_keeps_it(module_nats: NatsCluster) -> None:
    async def work(a: Leases, b: Leases) -> None:
        both = await asyncio.gather(a.take(REPO), b.take(REPO))
        assert sorted(lease.is_ours for lease in both) == [False, True]
        holder, other = (a, b) if both[0].is_ours else (b, a)
        for _ in range(3):
            assert (await holder.take(REPO)).is_ours
            assert not (await other.take(REPO)).is_ours

    asyncio.run(together(module_nats, "two", "a", "b", work=work))


@pytest.mark.slow
def test_only_the_lease_that_was_seen_is_taken_over(module_nats: NatsCluster) -> None:
    async def work(a: Leases, b: Leases, c: Leases) -> None:
        assert (await a.take(REPO)).is_ours
        seen = await b.take(REPO)
        assert (await a.take(REPO)).is_ours
        # The holder has written it since, so it is there after all.
        assert not (await b.take(REPO, seen)).is_ours
        seen = await b.take(REPO)
        took = await asyncio.gather(b.take(REPO, seen), c.take(REPO, seen))
        assert sorted(lease.is_ours for lease in took) == [False, True]
        lost = await a.take(REPO)
        assert not lost.is_ours and lost.node in ("b", "c")

    asyncio.run(together(module_nats, "over", "a", "b", "c", work=work))


@pytest.mark.slow
def test_one_that_is_given_up_is_free(module_nats: NatsCluster) -> None:
    async def work(a: Leases, b: Leases) -> None:
        assert (await a.take(REPO)).is_ours
        await b.release(REPO)
        assert not (await b.take(REPO)).is_ours
        await a.release(REPO)
        assert (await b.take(REPO)).is_ours
        assert not (await a.take(REPO)).is_ours

    asyncio.run(together(module_nats, "free", "a", "b", work=work))


@pytest.mark.slow
def test_a_node_that_was_started_again_has_it_still(module_nats: NatsCluster) -> None:
    async def first(a: Leases) -> None:
        assert (await a.take(REPO)).is_ours

    asyncio.run(together(module_nats, "again", "a", work=first))
    asyncio.run(together(module_nats, "again", "a", work=first))


@pytest.mark.slow
def test_servers_that_do_not_answer_are_left_alone_for_a_while(
    nats: NatsCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(a: Leases) -> None:
        assert (await a.take(REPO)).is_ours
        monkeypatch.setattr(rules, "ANSWERS_IN", 0.2)
        nats.servers[0].freeze()
        with pytest.raises(FleetAway):
            await a.take(REPO)
        assert not a.is_there
        began = asyncio.get_running_loop().time()
        for _ in range(100):
            with pytest.raises(FleetAway):
                await a.take(REPO)
        # It would be 20 s if each of them had waited.
        assert asyncio.get_running_loop().time() - began < 4
        nats.servers[0].thaw()

    asyncio.run(together(nats, "frozen", "a", work=work))
