"""What a node that died left in its fleet, put there without the node, and the node that is made of it."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from nats.js import JetStreamContext

from appliance.core.config.settings import Config, load_config
from appliance.core.fleet.heads import visiting
from appliance.core.fleet.link import FleetLink
from appliance.core.fleet.messages import (
    Attached,
    LogHead,
    NodeEntry,
    RepoEntry,
    SessionEnd,
    SessionKept,
    TurnAttached,
    TurnRow,
)
from appliance.core.fleet.names import key_of
from appliance.core.fleet.wire import write
from appliance.core.layout import Layout
from appliance.core.node.from_fleet import FleetRestoreReport, restore_from_fleet
from appliance.core.node.state_dir import open_stores
from appliance.core.store.stores import Stores
from tests.conftest import WIDGETS
from tests.support.gitutil import git
from tests.support.nats import NatsCluster
from tests.support.serve import write_config

_fleets = itertools.count()
AT = "2026-11-26T08:00:00.000Z"


class GoneNode:
    """The node `a` of a fleet of its own, on a disk that is empty. Its only repository is at `upstream`."""

    def __init__(self, directory: Path, nats: NatsCluster, upstream: Path) -> None:
        self.directory = directory
        self.nats = nats
        self.upstream = upstream
        self.layout = Layout(directory / "a")
        self.fleet = f"gone{next(_fleets)}"
        path = directory / "a.toml"
        fleet = {"servers": nats.urls, "name": self.fleet, "node": "a"}
        write_config(path, fleet=fleet, refresh={"allow_local": True})
        self.config: Config = load_config(path)
        self.names = FleetLink(self.config.fleet).names
        self.commits = git("rev-list", "--max-count=8", "--reverse", "HEAD", cwd=upstream).split()
        asyncio.run(self._make_streams())
        self.register()

    async def _make_streams(self) -> None:
        async with visiting(FleetLink(self.config.fleet)):
            """Whoever connects first makes them."""

    def register(self, name: str = WIDGETS, **changes: Any) -> None:
        """Put a repository into the fleet's registry."""
        entry = replace(RepoEntry(name, str(self.upstream), None, None, True, "b", AT), **changes)

        async def put(context: JetStreamContext) -> None:
            await (await context.key_value(self.names.registry)).put(key_of(name), write(entry))

        self.nats.ask(put)

    def row(self, number: int, session: str, commit: str, **changes: Any) -> TurnRow:
        """A turn that the upstream has, so that it needs no bundle."""
        uid = sha256(f"{changes.get('node', 'a')}{number}".encode()).hexdigest()
        row = TurnRow(
            uid=uid, node="a", id=number, repo=WIDGETS, session=session, commit=commit, old=None, base=commit, at=AT,
            subject=f"turn {number}", commits=1, files_changed=1, insertions=1, deletions=0, client="10.0.0.1:5",
            guest=None, bytes=100, bundle=None, bundle_size=0, bundle_sha256=None,
        )  # fmt: skip
        return replace(row, **changes)

    def say(self, *messages: TurnRow | TurnAttached | SessionEnd | SessionKept, by: str | None = None) -> None:
        """Publish in the stream of turns, as the nodes of the messages or as another one."""

        async def publish(context: JetStreamContext) -> None:
            for message in messages:
                await context.publish(self.names.turns_of(by or message.node), write(message))

        self.nats.ask(publish)

    def head(self, number: int, log: str = "a") -> LogHead:
        """Publish a head of a log of the lost node."""
        head = LogHead("a", log * 64, number, f"{number:064x}", AT)

        async def publish(context: JetStreamContext) -> None:
            await context.publish(self.names.heads_of("a"), write(head))

        self.nats.ask(publish)
        return head

    def attach(self, name: str, data: bytes) -> Attached:
        """Put a file into the object store."""
        digest = sha256(data).hexdigest()

        async def put(context: JetStreamContext) -> None:
            await (await context.object_store(self.names.objects)).put(digest, data)

        self.nats.ask(put)
        return Attached(name, len(data), digest)

    def restore(self, **options: Any) -> FleetRestoreReport:
        """Make it anew, listening only shortly who is alive."""
        options = {"move_aside": False, "watch": 0.05} | options
        return restore_from_fleet("a", self.layout, self.config, **options)

    @contextmanager
    def stores(self) -> Any:
        """The restored database."""
        stores: Stores = open_stores(self.layout, create=False)
        try:
            yield stores
        finally:
            stores.database.close()

    @contextmanager
    def spoken_for(self, *nodes: str) -> Iterator[None]:
        """Says again and again, from the beginning to the end, that nodes are alive."""
        begun, ended = threading.Event(), threading.Event()
        speaking = threading.Thread(target=self._speak, args=(nodes, begun, ended))
        speaking.start()
        try:
            assert begun.wait(60)
            yield
        finally:
            ended.set()
            speaking.join()

    def _speak(self, nodes: Sequence[str], begun: threading.Event, ended: threading.Event) -> Any:
        entry = NodeEntry("x", "1", AT, AT, None, "", 0, 0, 0, None, 0, 0)

        async def say() -> None:
            async def put(context: JetStreamContext) -> None:
                bucket = await context.key_value(self.names.nodes)
                while not ended.is_set():
                    for node in nodes:
                        await bucket.put(key_of(node), write(replace(entry, node=node)))
                    begun.set()
                    await asyncio.sleep(0.02)

            import nats

            client = await nats.connect(self.nats.urls)
            try:
                await put(client.jetstream())
            finally:
                await client.close()

        return asyncio.run(say())
