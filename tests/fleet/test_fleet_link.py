"""The connection to the fleet: made, lost and made again, while the node serves."""

from __future__ import annotations

from nats.js import JetStreamContext

from tests.support.fleet import TestFleet
from tests.support.gitutil import wait_until


def test_a_node_makes_the_streams_of_its_fleet(fleet: TestFleet) -> None:
    fleet["a"].start()

    async def names(context: JetStreamContext) -> set[str]:
        return {str(info.config.name) for info in await context.streams_info()}

    wait_until(
        lambda: (
            {"gitmirror-default-turns", "gitmirror-default-heads", "OBJ_gitmirror-default-objects"}
            <= fleet.nats.ask(names)
        ),
        timeout=20,
        message="the streams are there",
    )
