"""Builds the parts of one `serve` that belong to a fleet. Without `[fleet] servers` they are there and do nothing."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from appliance.core.daemon.shared_registry import SharedRegistry
from appliance.core.daemon.state import ServeState
from appliance.core.fleet.link import FleetLink

Loop = Callable[[], Coroutine[Any, Any, None]]


@dataclass(frozen=True)
class FleetParts:
    """The parts that other rooms are built with, before any of them is there."""

    link: FleetLink


@dataclass(frozen=True)
class Fleet:
    """The whole of it, with the background loops by name."""

    parts: FleetParts
    loops: Mapping[str, Loop]


def compose_fleet_parts(state: ServeState) -> FleetParts:
    """Builds what needs no other room. A change of `[fleet]` takes effect after a restart."""
    return FleetParts(FleetLink(state.config.fleet))


def compose_fleet(parts: FleetParts, shared: SharedRegistry) -> Fleet:
    """Builds the rest, of the rooms that are there."""
    if not parts.link.is_on:
        return Fleet(parts, {})
    return Fleet(parts, {"fleet": parts.link.run, "registry of the fleet": shared.run})
