"""The checks of `doctor` about the fleet: its files, and the connection of a running `serve`."""

from __future__ import annotations

from appliance.core.errors import GitmirrorError
from appliance.core.fleet.credentials import read_access
from appliance.core.fleet.report import in_words
from appliance.core.node.node import Node
from appliance.core.node.running import RunningNode
from appliance.core.ops.checks import Check
from appliance.core.units import counted


def fleet_checks(node: Node, serving: bool) -> list[Check]:
    """Nothing for a node alone. Without `serve` only the files are checked. Never raises GitmirrorError."""
    config = node.config.fleet
    if not config.is_on:
        return []
    try:
        read_access(config)
    except GitmirrorError as error:
        return [Check("fleet", False, error.message, error.hint or "see the message")]
    if not serving:
        return [Check("fleet", True, f"{config.name}, as {config.node_name}; serve connects to it")]
    try:
        current = node.current()
        found = current.fleet() if isinstance(current, RunningNode) else None
    except GitmirrorError as error:
        return [Check("fleet", False, error.message, error.hint or "see the log of serve")]
    if found is None:
        return []
    name, waits = f"{found['name']}, as {found['node']}", in_words(found["waiting"])
    if found["trouble"] or not found["connected"]:
        said = f"{name}: {found['trouble']}{f'; {waits} to go out' if waits else ''}"
        return [Check("fleet", False, said, "mend what it names, here or on the NATS servers")]
    gone = [each["node"] for each in found["nodes"] if not each["alive"]]
    if gone:
        said = f"{name}: {', '.join(gone)} said nothing for 30 s"
        mend = f"start serve there, or if it is gone for good: gitmirror.pyz fleet forget {gone[0]}"
        return [Check("fleet", False, said, mend)]
    return [Check("fleet", True, f"{name}: {counted(len(found['nodes']), 'node', 'nodes')}")]
