"""The fleet that this node belongs to: `fleet status`, `fleet forget`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import click

from appliance.cli.context import Options, json_option, pass_options
from appliance.cli.output import print_json, print_line, print_table, say_what_is_local
from appliance.core.errors import UsageError
from appliance.core.units import counted, format_duration

NOT_SERVING = 4
BEHIND = 3
ALONE = """this node is alone: it shares nothing with other nodes
to join a fleet, give it the NATS servers of the fleet and restart serve:
  [fleet]
  servers = ["nats://nats-1:4222"]"""
HEADERS = ("NODE", "STATE", "SEEN", "VERSION", "REPOS", "BEHIND", "LAG", "SESSIONS", "WAITING", "UNREAD", "URL")
RIGHT = ("SEEN", "REPOS", "BEHIND", "LAG", "SESSIONS", "WAITING", "UNREAD")


@click.group()
def fleet() -> None:
    """Show this node's fleet, and forget nodes that left it.

    The nodes of a fleet share their registry, the news from upstreams, and what agents recorded, through NATS servers
    that `[fleet] servers` names.

    \b
    Examples:
      gitmirror.pyz fleet status
      gitmirror.pyz fleet forget node-3
    """


@fleet.command()
@json_option
@pass_options
def status(options: Options, as_json: bool) -> None:
    """Show the nodes of the fleet, and what is behind.

    STATE is `gone` for a node that said nothing for 30 s, and `unknown` while this one cannot reach the fleet.
    BEHIND counts the repositories of a node that are stale, failing or damaged, WAITING what it has yet to send, and
    UNREAD what it has yet to read of the others' recordings. Exits with code 3 when a node is gone or behind, when
    the fleet cannot be reached, or with a warning, and with 4 when serve is not running; it then shows what the
    database knows. A
    node that is alone is told how to join a fleet.

    \b
    Example:
      gitmirror.pyz fleet status
    """
    from appliance.core.node.running import RunningNode

    node = options.node().current()
    found = node.fleet()
    if as_json:
        print_json(found)
    else:
        _print(found)
    if not found["servers"]:
        return
    if not as_json:
        say_what_is_local(node.repos())
    if not isinstance(node, RunningNode):
        sys.exit(NOT_SERVING)
    is_up = found["connected"] and not found["trouble"]
    if not is_up or found["warnings"] or any(_state(each) != "alive" for each in found["nodes"]):
        sys.exit(BEHIND)


@fleet.command()
@click.argument("name", metavar="NODE")
@pass_options
def forget(options: Options, name: str) -> None:
    """Forget a node that is gone for good.

    A node that stopped is shown as gone for a day. After this, no node of the fleet shows it any more. What it
    recorded stays in the fleet, and a node that comes back is there again. A node that is alive is refused.

    \b
    Example:
      gitmirror.pyz fleet forget node-3
    """
    node = options.node()
    if not node.config.fleet.is_on:
        raise UsageError("this node is alone, so it has no fleet that could forget a node", hint="see `fleet status`")
    node.current().forget_node(name)
    print_line(f"{name} is forgotten; what it recorded stays")


def _state(node: Mapping[str, Any]) -> str:
    if not node["alive"]:
        return "gone"
    return "behind" if node["behind"] or node["turns_behind"] else "alive"


def _print(found: Mapping[str, Any]) -> None:
    from appliance.core.fleet.report import in_words

    if not found["servers"]:
        for line in ALONE.splitlines():
            print_line(line)
        return
    reached = "connected" if found["connected"] else "not connected"
    print_line(f"fleet {found['name']}, this node is {found['node']}: {reached}")
    print_line(
        f"  {', '.join(found['servers'])}; {counted(found['replicas'], 'replica', 'replicas')}, "
        f"durability {found['durability']}"
    )
    print_line(f"  {in_words(found['waiting']) or 'nothing waits'} to go out")
    for warning in [*([found["trouble"]] if found["trouble"] else []), *found["warnings"]]:
        print_line(f"warning: {warning}")
    if found["nodes"]:
        print_line("")
        print_table(HEADERS, [_row(node, found) for node in found["nodes"]], right=RIGHT)
    gone = [node["node"] for node in found["nodes"] if not node["alive"]]
    if gone and found["connected"]:
        print_line(f"start serve on {', '.join(gone)}; if one is gone for good: gitmirror.pyz fleet forget {gone[0]}")


def _row(node: Mapping[str, Any], found: Mapping[str, Any]) -> tuple[Any, ...]:
    is_this = node["node"] == found["node"]
    return (
        f"{node['node']}{' (this)' if is_this else ''}",
        # Without a connection, nothing is heard of the others, whatever becomes of them.
        _state(node) if found["connected"] or is_this else "unknown",
        format_duration(node["seen"]),
        node["version"],
        node["repos"],
        node["behind"],
        "" if node["lag"] is None else format_duration(node["lag"]),
        node["sessions"],
        node["waiting"],
        node["turns_behind"],
        node["url"],
    )
