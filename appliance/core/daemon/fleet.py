"""Builds the parts of one `serve` that belong to a fleet. Without `[fleet] servers` they are there and do nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from appliance.core.daemon.state import ServeState
from appliance.core.errors import GitmirrorError
from appliance.core.events.facts import Publish
from appliance.core.fleet.incoming import Incoming
from appliance.core.fleet.link import FleetLink
from appliance.core.recording.compose import Recording
from appliance.core.store.stores import Stores

log = logging.getLogger(__name__)

Loop = Callable[[], Coroutine[Any, Any, None]]


@dataclass(frozen=True)
class FleetParts:
    """The parts that other rooms are built with, before any of them is there."""

    link: FleetLink

    @property
    def node(self) -> str | None:
        """This node's name in its fleet; None on a node alone."""
        return self.link.node if self.link.is_on else None


@dataclass(frozen=True)
class Fleet:
    """The whole of it, with the background loops by name."""

    parts: FleetParts
    loops: Mapping[str, Loop]


def compose_fleet_parts(state: ServeState, stores: Stores) -> FleetParts:
    """Builds what needs no other room. A change of `[fleet]` takes effect after a restart."""
    link = FleetLink(state.config.fleet)
    try:
        stores.fleet_turns.join(link.node) if link.is_on else stores.fleet_turns.leave()
    except GitmirrorError as error:
        log.error("which fleet this node belongs to cannot be noted yet: %s", error.message)
    return FleetParts(link)


def compose_fleet(
    parts: FleetParts, state: ServeState, stores: Stores, recording: Recording, publish: Publish
) -> Fleet:
    """Builds the rest, of the rooms that are there."""
    if not parts.link.is_on:
        return Fleet(parts, {})
    incoming = Incoming(
        parts.link, stores.fleet_turns, recording.ended,
        lambda name: next((repo for repo in state.repos if repo.name == name), None), publish,
    )  # fmt: skip
    return Fleet(parts, {"fleet": parts.link.run, "turns of the fleet": incoming.run})
