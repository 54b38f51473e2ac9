"""A node whose clock is weeks off ends no session of the fleet, and nobody ends its sessions for their old times."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import pytest
from nats.js import JetStreamContext

from appliance.core.config.fleet import FleetConfig
from appliance.core.fleet.clock import FleetClock
from appliance.core.fleet.heads import visiting
from appliance.core.fleet.link import FleetLink
from appliance.core.fleet.names import FleetNames
from appliance.core.fleet.nodes import Described, Nodes
from appliance.core.fleet.wire import write
from appliance.core.units import rfc3339
from tests.conftest import WIDGETS
from tests.fleet.away import Elsewhere
from tests.support.gitutil import wait_until
from tests.support.nats import NatsCluster
from tests.support.serve import Section, Serve
from tests.support.upstream import HttpUpstream


def test_the_servers_say_what_time_it_is(module_nats: NatsCluster) -> None:
    config = FleetConfig(servers=tuple(module_nats.urls), node="a", name="clock")

    async def ask() -> None:
        async with visiting(FleetLink(config)) as link:
            nodes = Nodes(link, lambda: Described(None, 0, 0, 0, None, {}, 0))
            clock, running = FleetClock(link, nodes), asyncio.create_task(nodes.run())
            assert clock.now() is None
            async with asyncio.timeout(60):
                while (now := clock.now()) is None:
                    await asyncio.sleep(0.01)
            assert abs(now - time.time()) < 5
            place = (await link.context.publish(link.names.turns_of("a"), b"a row")).seq
            stored = await clock.stored_at(place)
            assert stored is not None and abs(stored - time.time()) < 5
            assert await clock.stored_at(place + 1) is None and await clock.stored_at(-3) is None
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    asyncio.run(ask())


@pytest.mark.slow
def test_sessions_of_a_node_that_is_40_days_behind_stay(
    tmp_path: Path, nats: NatsCluster, upstream: HttpUpstream
) -> None:
    fleet: Section = {"servers": nats.urls, "node": "b", "name": "behind"}
    with Serve(tmp_path / "b", repos=[upstream.url(WIDGETS)], fleet=fleet).start() as serve:
        serve.wait_for_repo(WIDGETS)
        wait_until(lambda: " as b" in serve.log(), message="the fleet is there")
        away = Elsewhere.of(serve, nats, upstream, "behind", tmp_path / "clone")
        row = away.record("s", away.commit())
        old = replace(row, uid="e" * 64, id=2, session="behind", at=rfc3339(time.time() - 40 * 86400), bundle=None)

        async def publish(context: JetStreamContext) -> None:
            await context.publish(FleetNames("behind").turns_of("a"), write(replace(old, bundle_size=0)))

        nats.ask(publish)
        wait_until(lambda: len(serve.cli_json("sessions")) == 2, timeout=60, message="both are listed")
        # The first round of retention is at the start.
        serve.restart()
        serve.wait_for_repo(WIDGETS)
        wait_until(lambda: serve.log().count(" as b") == 2, message="the fleet is there")
        away.record("later", away.commit())
        assert {each["session"] for each in serve.cli_json("sessions")} == {"s", "behind", "later"}
