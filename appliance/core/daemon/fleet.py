"""Builds the parts of one `serve` that belong to a fleet. Without `[fleet] servers` they are there and do nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from appliance.core.daemon.state import ServeState
from appliance.core.fleet.heads import HeadPublisher
from appliance.core.fleet.link import FleetLink
from appliance.core.store.log_heads import LogHeads
from appliance.core.store.stores import Stores

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
    heads: HeadPublisher

    async def finish(self) -> None:
        """Sends what can still go out, before the loops end. Never raises, and takes seconds at most."""
        await self.heads.finish()


def compose_fleet_parts(state: ServeState) -> FleetParts:
    """Builds what needs no other room. A change of `[fleet]` takes effect after a restart."""
    return FleetParts(FleetLink(state.config.fleet))


def compose_fleet(parts: FleetParts, stores: Stores) -> Fleet:
    """Builds the rest, of the rooms that are there."""
    heads = HeadPublisher(parts.link, LogHeads(stores.database, stores.audit, time.time))
    if not parts.link.is_on:
        return Fleet(parts, {}, heads)
    return Fleet(parts, {"fleet": parts.link.run, "heads of the log": heads.run}, heads)
