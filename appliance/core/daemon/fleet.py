"""Builds the parts of one `serve` that belong to a fleet. Without `[fleet] servers` they are there and do nothing."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from appliance.core.daemon.state import ServeState
from appliance.core.events.bus import EventBus
from appliance.core.events.facts import RegistryChanged
from appliance.core.fleet.addresses import own_url
from appliance.core.fleet.link import FleetLink
from appliance.core.fleet.news import Sharing
from appliance.core.fleet.news_compose import FleetNews
from appliance.core.fleet.news_desk import Begin
from appliance.core.fleet.nodes import Nodes
from appliance.core.fleet.report import FleetReport
from appliance.core.fleet.waiting import OwnCounts, Waiting
from appliance.core.git.mirrors import Mirrors
from appliance.core.refresh.scheduler import Scheduler
from appliance.core.store.stores import Stores

Loop = Callable[[], Coroutine[Any, Any, None]]


@dataclass(frozen=True)
class FleetParts:
    """The parts that other rooms are built with, before any of them is there."""

    link: FleetLink
    waiting: Waiting
    nodes: Nodes
    report: FleetReport
    news: FleetNews


@dataclass(frozen=True)
class Fleet:
    """The whole of it, with the background loops by name."""

    parts: FleetParts
    loops: Mapping[str, Loop]


def compose_fleet_parts(state: ServeState, stores: Stores, mirrors: Mirrors) -> FleetParts:
    """Builds what needs no other room. A change of `[fleet]` takes effect after a restart."""
    link = FleetLink(state.config.fleet)
    waiting = Waiting(stores.database, stores.fleet, partial(_that_may_leave, state))
    counts = OwnCounts(
        stores.database, stores.health, stores.fleet, waiting, state.known_repos, state.stale_after,
        lambda: own_url(state.config, state.listening),
    )  # fmt: skip
    nodes = Nodes(link, counts.read)
    sharing = Sharing(state.readers, state.interval)
    news = FleetNews(link, mirrors, sharing, nodes.url_of, state.refresh_timeout)
    return FleetParts(link, waiting, nodes, FleetReport(link, nodes, waiting), news)


def compose_fleet(parts: FleetParts, state: ServeState, bus: EventBus, scheduler: Scheduler, begin: Begin) -> Fleet:
    """Builds the rest, of the rooms that are there."""
    if not parts.link.is_on:
        return Fleet(parts, {})
    desk = parts.news.desk(scheduler, state.find, begin)

    def forget(event: RegistryChanged) -> None:
        desk.forget(event.gone)

    bus.subscribe(RegistryChanged, forget)
    return Fleet(parts, {"fleet": parts.link.run, "nodes of the fleet": parts.nodes.run, "news of the fleet": desk.run})


def _that_may_leave(state: ServeState, names: Iterable[str]) -> set[str]:
    """The repositories whose turns may leave this node: not private ones, unless the config says so.

    What is not registered counts as private, because nobody can tell any more.
    """
    privacy, wanted, everything = state.privacy, set(names), state.config.fleet.replicate_private
    known = [repo for repo in state.repos if repo.name in wanted]
    return {repo.name for repo in known if everything or not privacy.is_private(repo)}
