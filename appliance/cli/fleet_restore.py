"""`restore --from-fleet`: what was made anew, and what is missing, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from appliance.cli.output import hush, print_json, print_line, say
from appliance.core.units import counted

if TYPE_CHECKING:
    from appliance.core.node.from_fleet import FleetRestoreReport
    from appliance.core.node.node import Node

MOST_NAMED = 20


def restore_node(node: Node, name: str, yes: bool, even_if_alive: bool, as_json: bool) -> None:
    """Makes the node `name` of the fleet anew in the state directory of `node`. Raises GitmirrorError."""
    from appliance.core.node.from_fleet import restore_from_fleet

    hush("appliance.core.fleet")
    report = restore_from_fleet(name, node.layout, node.config, move_aside=yes, even_if_alive=even_if_alive)
    if as_json:
        print_json(report.document())
        return
    _say_missing(report)
    if not report.turns and not report.logs:
        say(f"the fleet has nothing that a node {name} recorded; if that is not the name, restore the right one")
    if node.config.fleet.node_name != name:
        say(f'set node = "{name}" in [fleet] before serve is started, so that it goes on as this node')
    print_line(
        f"{report.state} is node {name} as the fleet has it: {counted(report.turns, 'turn', 'turns')} in "
        f"{counted(report.sessions, 'session', 'sessions')}; "
        f"{counted(report.repositories, 'repository', 'repositories')}; audit head {report.audit_head}"
    )


def _say_missing(report: FleetRestoreReport) -> None:
    if report.aside:
        say(f"what was in {report.state} is now in {report.aside}")
    for repo, why in sorted(report.unreached.items()):
        say(f"{repo}: its history could not be fetched, and serve tries again: {why}")
    for turn in report.lost_turns[:MOST_NAMED]:
        say(
            f"{turn['repo']}: turn {turn['id']} of session {turn['session']}, {turn['commit']}, is listed without its "
            f"objects: {turn['why']}"
        )
    if (more := len(report.lost_turns) - MOST_NAMED) > 0:
        say(f"and {more} more turns without objects; --json names all of them")
    for file in report.lost_attachments[:MOST_NAMED]:
        say(f"{file['repo']}: the attachment {file['name']} of turn {file['turn']} is missing: {file['why']}")
    for repo, count in report.unregistered.items():
        say(f"{repo} is registered nowhere: {counted(count, 'turn stays', 'turns stay')} in the fleet alone")
    for log in report.logs:
        say(
            f"the lost log ended at event {log['id']} or later ({log['hash']}, published at {log['at']}); a note in "
            "the new log says so"
        )
