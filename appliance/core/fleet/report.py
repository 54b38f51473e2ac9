"""What this node reports of its fleet: `fleet status`, its part of `status`, the metrics and the warnings."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from appliance.core.config.fleet import FleetConfig
from appliance.core.fleet.link import FleetLink
from appliance.core.fleet.messages import NodeEntry
from appliance.core.fleet.nodes import Nodes
from appliance.core.fleet.waiting import KINDS, Waiting
from appliance.core.store.database import StoreError
from appliance.core.units import counted

Warnings = Callable[[], Iterable[str | None]]
"""Reads the warnings of one part of the fleet; None stands for none."""

WORDS = {
    "turns": ("turn", "turns"),
    "attachments": ("attachment", "attachments"),
    "registry": ("change of the registry", "changes of the registry"),
    "ends": ("end or keep of a session", "ends and keeps of sessions"),
}


class FleetReport:
    """Reads the fleet's parts at each call. A part adds its warnings with `add_warnings`."""

    def __init__(self, link: FleetLink, nodes: Nodes, waiting: Waiting) -> None:
        self._link = link
        self._nodes = nodes
        self._waiting = waiting
        self._warnings: list[Warnings] = [self._of_nodes, lambda: self._link.remarks]

    def add_warnings(self, *read: Warnings) -> None:
        """Adds warnings that are read whenever `status` or `fleet status` is asked for."""
        self._warnings += read

    async def full(self) -> dict[str, Any]:
        """The document of `fleet status --json`."""
        config = self._link.config
        if not self._link.is_on:
            return fleet_document(config, {})
        try:
            waiting: Mapping[str, int] = await asyncio.to_thread(self._waiting.count)
        except StoreError:
            waiting = self._nodes.described.waiting
        return fleet_document(
            config,
            waiting,
            connected=self._link.is_up,
            trouble=self._link.trouble,
            nodes=[self._node(name) for name in self._nodes.names()],
            warnings=self.warnings(),
        )

    async def forget(self, node: str) -> dict[str, Any]:
        """Has the fleet forget a node that is gone; returns `full`. Raises NotFound, Conflict, FleetAway."""
        await self._nodes.forget(node)
        return await self.full()

    def short(self) -> dict[str, Any] | None:
        """`fleet` of `status --json`; None for a node alone. What waits is as last counted, a few seconds ago."""
        if not self._link.is_on:
            return None
        return short_document(
            self._link.config, self._nodes.described.waiting, connected=self._link.is_up, trouble=self._link.trouble
        )

    def warnings(self) -> list[str]:
        """What the parts warn of."""
        return [warning for read in self._warnings for warning in read() if warning] if self._link.is_on else []

    def complaints(self) -> list[str]:
        """The same for `warnings` of `status`, with what is wrong with the connection and what waits because of it."""
        trouble = self._link.trouble
        if trouble is None:
            return self.warnings()
        waits = in_words(self._nodes.described.waiting)
        return [
            f"the fleet {self._link.config.name}: {trouble}{f'; {waits} to go out' if waits else ''}",
            *self.warnings(),
        ]

    def gauges(self) -> Iterable[tuple[str, str, float]]:
        """Whether the fleet can be used, and how many of its nodes are alive and gone."""
        if self._link.is_on:
            names = self._nodes.names()
            alive = sum(map(self._nodes.is_alive, names))
            yield "fleet_connected", "1 if the fleet can be used.", float(self._link.is_up)
            yield "fleet_nodes", "Nodes of the fleet that have said something within 30 s.", float(alive)
            yield (
                "fleet_nodes_gone",
                "Nodes that have said nothing for 30 s, but within a day.",
                float(len(names) - alive),
            )

    def by_kind(self) -> Iterable[tuple[str, str, str, Mapping[str, float]]]:
        """What waits to go out."""
        if self._link.is_on:
            waiting = self._nodes.described.waiting
            values = {kind: float(waiting.get(kind, 0)) for kind in KINDS}
            yield "gauge", "fleet_waiting", "What has yet to go out to the fleet.", values

    def _node(self, name: str) -> dict[str, Any]:
        entry = self._nodes.entry(name)
        assert entry is not None
        is_this = name == self._link.node
        return node_document(
            entry, self._nodes.seen(name), is_this or self._nodes.is_alive(name), self._nodes.turns_behind(name)
        )

    def _of_nodes(self) -> Iterable[str]:
        if twin := self._nodes.twin:
            yield (
                f"another node calls itself {twin.node}, too (started {twin.started_at}, at {twin.url}): give each a "
                "name of its own in [fleet] node"
            )


def fleet_document(
    config: FleetConfig,
    waiting: Mapping[str, int],
    *,
    connected: bool = False,
    trouble: str | None = None,
    nodes: Iterable[Mapping[str, Any]] = (),
    warnings: Iterable[str] = (),
) -> dict[str, Any]:
    """The document of `fleet status --json`. For a node alone, `servers` is empty."""
    return {
        "name": config.name,
        "node": config.node_name,
        "servers": list(config.servers),
        "connected": connected,
        "trouble": trouble,
        "durability": config.durability,
        "replicas": config.replicas,
        "waiting": {kind: waiting.get(kind, 0) for kind in KINDS},
        "nodes": list(nodes),
        "warnings": list(warnings),
    }


def short_document(
    config: FleetConfig, waiting: Mapping[str, int], *, connected: bool = False, trouble: str | None = None
) -> dict[str, Any]:
    """`fleet` of `status --json`."""
    whole = fleet_document(config, waiting, connected=connected, trouble=trouble)
    return {key: whole[key] for key in ("name", "node", "connected", "trouble", "waiting")}


def node_document(entry: NodeEntry, seen: float, alive: bool, turns_behind: int) -> dict[str, Any]:
    """One of `nodes`; `seen` are the seconds since its entry changed."""
    return {
        "node": entry.node,
        "version": entry.version,
        "alive": alive,
        "seen": round(seen, 1),
        "started_at": entry.started_at,
        "url": entry.url,
        "repos": entry.repos,
        "sessions": entry.sessions,
        "behind": entry.behind,
        "lag": entry.lag,
        "waiting": entry.waiting,
        "turns_behind": turns_behind,
    }


def in_words(waiting: Mapping[str, int]) -> str:
    """`3 turns and 1 change of the registry wait`; empty if nothing does."""
    parts = [counted(number, *WORDS[kind]) for kind, number in waiting.items() if number]
    return f"{' and '.join(parts)} wait{'s' if sum(waiting.values()) == 1 else ''}" if parts else ""
