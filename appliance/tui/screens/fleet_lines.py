"""What Node says of the fleet: the connection, each node, and what is behind. Nothing on a node alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from appliance.tui.screens.node_lines import said
from appliance.tui.text import Cell, cell, count, plain, span
from appliance.tui.widgets.lines import Line

MOST_NODES = 5
"""Nodes that have a line of their own; those with something wrong come first."""


def fleet_lines(fleet: Mapping[str, Any] | None, width: int) -> list[Line]:
    """The lines for a document of `fleet status --json`, of at most `width` columns."""
    if fleet is None or not fleet["servers"]:
        return []
    nodes = fleet["nodes"]
    waits = sum(fleet["waiting"].values())
    is_well = fleet["connected"] and not fleet["trouble"]
    said = f"{plain(fleet['name'])}, this node is {plain(fleet['node'])}"
    state: Cell = (f" {'●' if is_well else '▲'} fleet  ", "good" if is_well else "bad"), (said, "")
    if not is_well:
        state = (*state, (": not connected" if not fleet["connected"] else ": something was refused", "bad"))
    right = cell(f"{waits:,} to go out " if waits else f"{count(len(nodes), 'node')} ", "warn" if waits else "")
    lines: list[Line] = [(state, right)]
    shown = sorted(nodes, key=lambda node: (_tone(node) == "", node["node"]))[:MOST_NODES]
    names = max((len(plain(node["node"])) for node in shown), default=0)
    lines += [line for node in shown for line in _node(node, names, fleet["connected"], width)]
    if len(nodes) > len(shown):
        lines.append((cell(f"          and {len(nodes) - len(shown):,} more; `fleet status` lists them", "dim"), ()))
    return lines


def short_node(name: str | None) -> str:
    """The name of a node without the domain that the names of all share; an address is left whole."""
    first = (name or "").partition(".")[0]
    return (name or "") if first.isdigit() else first


def _tone(node: Mapping[str, Any]) -> str:
    return "bad" if not node["alive"] else "warn" if node["behind"] or node["turns_behind"] else ""


def _node(node: Mapping[str, Any], names: int, is_up: bool, width: int) -> list[Line]:
    tone = _tone(node)
    if not node["alive"] and not is_up:
        # Without a connection, nothing is heard of it, whatever becomes of it.
        told, tone = f"last heard {span(node['seen'])} ago", ""
    elif not node["alive"]:
        told = f"silent for {span(node['seen'])}"
    else:
        told = count(node["repos"], "repository", "repositories")
        if node["behind"]:
            told += f", {node['behind']:,} behind"
        if node["lag"] is not None:
            told += f", lag {span(node['lag'])}"
        if node["turns_behind"]:
            told += f", {count(node['turns_behind'], 'message')} unread"
        if node["waiting"]:
            told += f", {node['waiting']:,} to send"
    name = plain(node["node"])
    return said(cell(f"          {name:<{names}}  "), f"{told}, version {plain(node['version'])}", width, tone or "dim")
