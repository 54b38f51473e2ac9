"""Builds the parts of one `serve` that belong to a fleet. Without `[fleet] servers` they are there and do nothing."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from appliance.core.daemon.state import GIT, ServeState
from appliance.core.events.bus import EventBus
from appliance.core.events.facts import RegistryChanged
from appliance.core.fleet.link import FleetLink
from appliance.core.fleet.news import Sharing
from appliance.core.fleet.news_compose import FleetNews
from appliance.core.fleet.news_desk import Begin
from appliance.core.fleet.nodes import Nodes
from appliance.core.git.mirrors import Mirrors
from appliance.core.refresh.scheduler import Scheduler

Loop = Callable[[], Coroutine[Any, Any, None]]


@dataclass(frozen=True)
class FleetParts:
    """The parts that other rooms are built with, before any of them is there."""

    link: FleetLink
    nodes: Nodes
    news: FleetNews


@dataclass(frozen=True)
class Fleet:
    """The whole of it, with the background loops by name."""

    parts: FleetParts
    loops: Mapping[str, Loop]


def compose_fleet_parts(state: ServeState, mirrors: Mirrors) -> FleetParts:
    """Builds what needs no other room. A change of `[fleet]` takes effect after a restart."""
    link = FleetLink(state.config.fleet)
    nodes = Nodes(link, partial(state.public_url, GIT))
    sharing = Sharing(state.readers, state.interval)
    return FleetParts(link, nodes, FleetNews(link, mirrors, sharing, nodes.url_of, state.refresh_timeout))


def compose_fleet(parts: FleetParts, state: ServeState, bus: EventBus, scheduler: Scheduler, begin: Begin) -> Fleet:
    """Builds the rest, of the rooms that are there."""
    if not parts.link.is_on:
        return Fleet(parts, {})
    desk = parts.news.desk(scheduler, state.find, begin)

    def forget(event: RegistryChanged) -> None:
        desk.forget(event.gone)

    bus.subscribe(RegistryChanged, forget)
    return Fleet(parts, {"fleet": parts.link.run, "nodes of the fleet": parts.nodes.run, "news of the fleet": desk.run})
