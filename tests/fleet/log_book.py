"""An audit log without a `serve`, whose heads go to a fleet over real NATS."""

from __future__ import annotations

import asyncio
import itertools
import shutil
from pathlib import Path

from nats.js import JetStreamContext

from appliance.core.config.fleet import FleetConfig
from appliance.core.fleet.heads import HeadPublisher, visiting
from appliance.core.fleet.link import FleetLink
from appliance.core.fleet.messages import LogHead
from appliance.core.fleet.wire import write
from appliance.core.layout import Layout
from appliance.core.node.state_dir import open_stores
from appliance.core.store.audit import Attempt
from appliance.core.store.log_heads import LogHeads
from appliance.core.store.stores import Stores
from tests.support.nats import NatsCluster
from tests.support.serve import Serve

_fleets = itertools.count()


class LogBook:
    """The log of the node `a` in a state directory, in a fleet of its own. `serve` is for commands; it never runs."""

    def __init__(self, directory: Path, nats: NatsCluster) -> None:
        self.nats = nats
        self.fleet = f"log{next(_fleets)}"
        self.config = FleetConfig(servers=tuple(nats.urls), name=self.fleet, node="a")
        self.names = FleetLink(self.config).names
        section = {"servers": nats.urls, "name": self.fleet, "node": "a"}
        self.serve = Serve(directory / "a", fleet=section)
        self.layout = Layout(directory / "a")

    @property
    def stores(self) -> Stores:
        """The database, opened anew."""
        return open_stores(self.layout)

    @property
    def heads(self) -> LogHeads:
        """The log's view of its heads, at a clock that stands still."""
        stores = self.stores
        return LogHeads(stores.database, stores.audit, lambda: 1e9)

    def grow(self, events: int = 1) -> None:
        """Record so many rejected pushes."""
        grow(self.layout, events)

    def publish(self) -> None:
        """Publish the head as a `serve` that has just started does."""

        async def publish() -> None:
            async with visiting(FleetLink(self.config)) as link:
                await HeadPublisher(link, self.heads, lambda: 1e9).publish()

        asyncio.run(publish())

    def published(self) -> int:
        """How many messages are in the stream of heads."""

        async def count(context: JetStreamContext) -> int:
            return (await context.stream_info(self.names.heads)).state.messages

        return self.nats.ask(count)

    def say(self, data: bytes | LogHead) -> None:
        """Publish anything in the name of the node."""
        raw = write(data) if isinstance(data, LogHead) else data

        async def publish(context: JetStreamContext) -> None:
            await context.publish(self.names.heads_of("a"), raw)

        self.nats.ask(publish)

    def save(self) -> Path:
        """A copy of the state directory."""
        kept = self.layout.state.with_name("saved")
        shutil.copytree(self.layout.state, kept)
        return kept

    def put_back(self, saved: Path) -> None:
        """Replace the whole disk by a copy."""
        shutil.rmtree(self.layout.state)
        shutil.copytree(saved, self.layout.state)

    def verify(self, *options: str, codes: tuple[int, ...] = (0,)) -> str:
        """`audit verify --fleet`."""
        return self.serve.here("audit", "verify", "--fleet", *options, codes=codes)


def grow(layout: Layout, events: int = 1) -> None:
    """Record so many rejected pushes in the log of a state directory."""
    attempt = Attempt("p", "acme/widgets", "refs/heads/main", None, None, "a" * 40, "rejected", "no", "10.0.0.1:5")
    stores = open_stores(layout)
    for _ in range(events):
        stores.audit.record_attempts([attempt])
    stores.database.close()
