"""What is in the object store stays there when a NATS server is killed, also in the copy of that server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from nats.js import JetStreamContext

from appliance.core.fleet.link import FleetLink
from appliance.core.fleet.names import FleetNames
from appliance.core.fleet.objects import ObjectShelf
from tests.support.gitutil import wait_until
from tests.support.links import a_link, running
from tests.support.nats import WHY_NOT, NatsCluster

pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "-")

STREAM = f"OBJ_{FleetNames('default').objects}"


async def with_shelf(nats: NatsCluster, work: Callable[[ObjectShelf], Awaitable[None]]) -> None:
    """Does something with the objects of a fleet."""
    link: FleetLink = a_link(nats)
    async with running(link):
        await link.wait_up()
        await work(ObjectShelf(link))


def messages_of(nats: NatsCluster) -> int:
    """How many messages the leader of the objects has."""
    return int(nats.ask(lambda context: context.stream_info(STREAM)).state.messages)


def test_a_try_that_was_interrupted_is_cleared_away(tmp_path: Path, nats: NatsCluster) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 300_000)

    async def store(shelf: ObjectShelf) -> None:
        await shelf.put("one", path)
        whole = await asyncio.to_thread(messages_of, nats)
        # As after a kill between the pieces and the entry.
        await shelf._clear(shelf._entry("one"))
        assert await shelf.find("one") is None
        assert await asyncio.to_thread(messages_of, nats) == whole - 1
        await shelf.put("one", path)
        await shelf.put("other", path)
        assert await asyncio.to_thread(messages_of, nats) == 2 * whole
        await shelf.remove("one")
        assert await asyncio.to_thread(messages_of, nats) == whole
        assert await shelf.find("other")

    asyncio.run(with_shelf(nats, store))


@pytest.mark.slow
def test_the_copy_of_a_server_that_was_killed_is_whole(tmp_path: Path) -> None:
    """nats-server 2.9 does a purge of one subject again as it starts, and then takes away all that came before."""
    path = tmp_path / "file"
    path.write_bytes(b"x" * 1000)
    count = 12

    async def store(shelf: ObjectShelf) -> None:
        for number in range(count + 1):
            await shelf.put(f"object-{number}", path)
        await shelf.remove("object-0")

    async def look(shelf: ObjectShelf) -> None:
        for number in range(1, count + 1):
            assert await shelf.find(f"object-{number}"), number

    with NatsCluster(tmp_path / "nats", 3) as cluster:
        asyncio.run(with_shelf(cluster, store))
        victim = cluster.servers[1]
        victim.stop()
        victim.start()

        async def lead(context: JetStreamContext) -> bool:
            info = await context.stream_info(STREAM)
            assert info.cluster is not None
            if info.cluster.leader == victim.name:
                return True
            await context._nc.request(f"$JS.API.STREAM.LEADER.STEPDOWN.{STREAM}", b"", timeout=5)
            return False

        def leads() -> bool:
            with contextlib.suppress(Exception):
                return cluster.ask(lead)
            return False

        wait_until(leads, timeout=60, interval=0.5, message="the server that was killed leads the stream")
        asyncio.run(with_shelf(cluster, look))
        # Now and then that server still has a piece of the object that was removed, which harms nobody.
        assert messages_of(cluster) >= 2 * count
