"""Builds the parts of one `serve` that belong to a fleet. Without `[fleet] servers` they are there and do nothing."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from appliance.core.daemon.shared_registry import SharedRegistry
from appliance.core.daemon.state import ServeState
from appliance.core.errors import GitmirrorError
from appliance.core.events.bus import EventBus
from appliance.core.events.facts import RegistryChanged, SessionsEnded
from appliance.core.fleet.addresses import own_url
from appliance.core.fleet.clock import FleetClock
from appliance.core.fleet.heads import HeadPublisher
from appliance.core.fleet.incoming import Incoming
from appliance.core.fleet.link import FleetLink
from appliance.core.fleet.news import Sharing
from appliance.core.fleet.news_compose import FleetNews
from appliance.core.fleet.news_desk import Begin
from appliance.core.fleet.nodes import Nodes
from appliance.core.fleet.outgoing import FleetSender
from appliance.core.fleet.report import FleetReport
from appliance.core.fleet.waiting import OwnCounts, Waiting
from appliance.core.git.mirrors import Mirrors
from appliance.core.recording.compose import Recording
from appliance.core.refresh.scheduler import Scheduler
from appliance.core.store.fleet_outgoing import OutgoingStore
from appliance.core.store.log_heads import LogHeads
from appliance.core.store.stores import Stores

log = logging.getLogger(__name__)

Loop = Callable[[], Coroutine[Any, Any, None]]


@dataclass(frozen=True)
class FleetParts:
    """The parts that other rooms are built with, before any of them is there."""

    link: FleetLink
    waiting: Waiting
    nodes: Nodes
    report: FleetReport
    news: FleetNews
    sender: FleetSender
    clock: FleetClock

    @property
    def node(self) -> str | None:
        """This node's name in its fleet; None on a node alone."""
        return self.link.node if self.link.is_on else None


@dataclass(frozen=True)
class Fleet:
    """The whole of it, with the background loops by name."""

    parts: FleetParts
    loops: Mapping[str, Loop]
    heads: HeadPublisher

    async def finish(self) -> None:
        """Sends what can still go out, before the loops end. Never raises, and takes seconds at most."""
        await self.heads.finish()


def compose_fleet_parts(state: ServeState, stores: Stores, mirrors: Mirrors) -> FleetParts:
    """Builds what needs no other room. A change of `[fleet]` takes effect after a restart."""
    link = FleetLink(state.config.fleet)
    try:
        stores.fleet_turns.join(link.node) if link.is_on else stores.fleet_turns.leave()
    except GitmirrorError as error:
        # A node alone has nothing to note, and what is wrong with the database is said elsewhere.
        if link.is_on:
            log.error("which fleet this node belongs to cannot be noted yet: %s", error.message)
    waiting = Waiting(stores.database, stores.fleet, lambda names: set(filter(state.may_replicate, names)))
    counts = OwnCounts(
        stores.database, stores.health, stores.fleet, waiting, state.known_repos, state.stale_after,
        lambda: own_url(state.config, state.listening),
    )  # fmt: skip
    nodes = Nodes(link, counts.read)
    news = FleetNews(link, mirrors, Sharing(state.readers, state.interval), nodes.wait_url_of, state.refresh_timeout)
    sender = FleetSender(link, OutgoingStore(stores.database), stores.fleet, mirrors, state.may_replicate)
    return FleetParts(link, waiting, nodes, FleetReport(link, nodes, waiting), news, sender, FleetClock(link, nodes))


def compose_fleet(
    parts: FleetParts,
    state: ServeState,
    stores: Stores,
    bus: EventBus,
    scheduler: Scheduler,
    recording: Recording,
    shared: SharedRegistry,
    begin: Begin,
) -> Fleet:
    """Builds the rest, of the rooms that are there."""
    heads = HeadPublisher(parts.link, LogHeads(stores.database, stores.audit, time.time))
    if not parts.link.is_on:
        return Fleet(parts, {}, heads)
    desk = parts.news.desk(scheduler, state.lookup, begin)

    def forget(event: RegistryChanged) -> None:
        desk.forget(event.gone)

    def announce(event: SessionsEnded) -> None:
        parts.sender.wake()

    bus.subscribe(RegistryChanged, forget)
    bus.subscribe(SessionsEnded, announce)
    parts.report.add_warnings(shared.complaints, lambda: [parts.sender.trouble()])
    incoming = Incoming(
        parts.link, stores.fleet_turns, recording.ended,
        lambda name: next((repo for repo in state.repos if repo.name == name), None), bus.publish,
    )  # fmt: skip
    return Fleet(
        parts,
        {
            "fleet": parts.link.run,
            "nodes of the fleet": parts.nodes.run,
            "registry of the fleet": shared.run,
            "news of the fleet": desk.run,
            "turns of the fleet": incoming.run,
            "outgoing turns": parts.sender.run,
            "heads of the log": heads.run,
        },
        heads,
    )
