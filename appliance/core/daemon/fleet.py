"""Builds the parts of one `serve` that belong to a fleet. Without `[fleet] servers` they are there and do nothing."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from appliance.core.daemon.state import ServeState
from appliance.core.fleet.link import FleetLink
from appliance.core.fleet.outgoing import FleetSender
from appliance.core.git.mirrors import Mirrors
from appliance.core.store.fleet_outgoing import OutgoingStore
from appliance.core.store.stores import Stores

Loop = Callable[[], Coroutine[Any, Any, None]]


@dataclass(frozen=True)
class FleetParts:
    """The parts that other rooms are built with, before any of them is there."""

    link: FleetLink
    sender: FleetSender


@dataclass(frozen=True)
class Fleet:
    """The whole of it, with the background loops by name."""

    parts: FleetParts
    loops: Mapping[str, Loop]


def compose_fleet_parts(state: ServeState, stores: Stores, mirrors: Mirrors) -> FleetParts:
    """Builds what needs no other room. A change of `[fleet]` takes effect after a restart."""
    link = FleetLink(state.config.fleet)
    sender = FleetSender(link, OutgoingStore(stores.database), stores.fleet, mirrors, state.may_replicate)
    return FleetParts(link, sender)


def compose_fleet(parts: FleetParts) -> Fleet:
    """Builds the rest, of the rooms that are there."""
    if not parts.link.is_on:
        return Fleet(parts, {})
    return Fleet(parts, {"fleet": parts.link.run, "outgoing turns": parts.sender.run})
