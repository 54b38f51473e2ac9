"""The state of the node: `status`, `egress`, `doctor`."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.context import Options, json_option, pass_options
from appliance.cli.output import print_json, print_json_line, print_line, print_table, say, say_what_is_local
from appliance.cli.storage import by_kind, in_words, used_of
from appliance.core.errors import NotServing
from appliance.core.models import UNHEALTHY, State
from appliance.core.units import format_duration, format_size

if TYPE_CHECKING:
    from appliance.core.node.node import Node

FILLING = 0.8
"""The part of the budget, or of what the disk has room for, from which on `status` says what takes it."""
NOT_SERVING = 4
NOT_HEALTHY = 3


@click.command()
@click.option(
    "--watch",
    "seconds",
    type=click.FloatRange(min=0.2),
    is_flag=False,
    flag_value=2.0,
    metavar="[SECONDS]",
    help="Show it again every SECONDS, or every 2, until Ctrl-C; with --json, as JSON lines.",
)
@json_option
@pass_options
def status(options: Options, seconds: float | None, as_json: bool) -> None:
    """Show the health of the node and of each repository.

    Exits with code 3 when a repository is stale, failing or damaged or pushes are off, and with 4 when serve is not
    running. With --watch, draws the newest state in place on a terminal, and prints one after another elsewhere; the
    exit code is then 0.

    \b
    Examples:
      gitmirror.pyz status
      gitmirror.pyz status --watch 5
    """
    node = options.node()
    if seconds is not None:
        _watch(node, seconds, as_json)
        return
    found = node.status()
    if as_json:
        print_json(found)
    else:
        _show(node, found)
    if not found["serving"]:
        sys.exit(NOT_SERVING)
    if found["pushes"].get("off") or any(repo["state"] in UNHEALTHY for repo in found["repos"]):
        sys.exit(NOT_HEALTHY)


def _watch(node: Node, seconds: float, as_json: bool) -> None:
    from appliance.cli.redrawing import Redrawn

    drawn = Redrawn()
    try:
        while True:
            found = node.status()
            if as_json:
                print_json_line(found)
            else:
                with drawn:
                    _show(node, found)
            time.sleep(seconds)
    except KeyboardInterrupt:
        return


def _show(node: Node, found: dict[str, Any]) -> None:
    _print_status(found)
    if found["serving"] and any(repo["state"] == State.CLONING for repo in found["repos"]):
        _print_clones(node)
    if node.config.fleet.is_on:
        say_what_is_local(found["repos"])


def _is_filling(storage: Mapping[str, Any]) -> bool:
    """Whether what the state directory takes is near to what it may take."""
    return bool(storage["used"] > FILLING * storage["budget"])


def _print_status(found: dict[str, Any]) -> None:
    if found["serving"]:
        listeners = [
            found[name] if name != "admin" else f"admin {found[name]}"
            for name in ("git", "http", "admin")
            if found[name]
        ]
        print_line(f"gitmirror {found['version']} serving (process {found['pid']}, {found['clients']} guests)")
        print_line("  " + "  ".join(listeners))
    else:
        last = "; this is the last state in the database" if found["storage"]["by"]["database"] else ""
        print_line(f"gitmirror {found['version']}: serve is not running{last}")
    if found["serving"] and found.get("fleet"):
        print_line(f"  {_fleet(found['fleet'])}")
    if found.get("backup") and found["backup"]["at"]:
        backup = found["backup"]
        print_line(f"  last backup {backup['at']} ({format_duration(backup['age'])} ago) to {backup['to']}")
    if found["storage"]["by"]["disks"]:
        print_line(f"  disks take {format_size(found['storage']['by']['disks'])}; `disks` lists their leases")
    if _is_filling(found["storage"]):
        print_line(f"  the state directory takes {used_of(found['storage'])}: {by_kind(found['storage'])}")
        if found["storage"]["next"]:
            print_line(f"  first to go: {in_words(found['storage']['next'][0])}; `storage` says more")
    for warning in found["warnings"]:
        print_line(f"warning: {warning}")
    rows = []
    for repo in found["repos"]:
        lag = "never" if repo["lag"] is None else format_duration(repo["lag"])
        tip = repo["tip"][:12] if repo["tip"] else ""
        size = format_size(repo["size"])
        rows.append((repo["name"], repo["state"], lag, repo["branch"], tip, repo["refs"], repo["sessions"], size))
    headers = ("REPOSITORY", "STATE", "LAG", "BRANCH", "TIP", "REFS", "SESSIONS", "SIZE")
    if rows:
        print_line("")
        print_table(headers, rows, right=("LAG", "REFS", "SESSIONS", "SIZE"))
    else:
        say("No repository is registered: gitmirror.pyz add-repo URL")
    for repo in found["repos"]:
        if repo.get("damage"):
            print_line(f"{repo['name']}: its mirror is damaged: {repo['damage']}")
        for lack in repo.get("lacks", ()):
            where = f" ({lack['url']})" if lack["url"] else ""
            print_line(f"{repo['name']}: the submodule {lack['path']} is empty: {lack['reason']}{where}")
        if repo["last_error"]:
            times = f" ({repo['failures']} times in a row)" if repo["failures"] > 1 else ""
            print_line(f"{repo['name']}: {repo['last_error']}{times}")
            if repo.get("retry_at"):
                print_line(f"  no scheduled refresh before {repo['retry_at']}, because the upstream asked to wait")
        if repo.get("hint"):
            print_line(f"  what to do: {repo['hint']}")


def _print_clones(node: Node) -> None:
    """Prints how far each first clone is."""
    from appliance.core.events.fetch_progress import FetchProgress
    from appliance.core.node.queries import ANSWERS_WITHIN

    pulse = None
    with suppress(NotServing):
        pulse = node.current().pulse(ANSWERS_WITHIN)
    # The pulse of an older `serve` has none.
    for name, clone in (pulse or {}).get("clones", {}).items():
        print_line(f"{name}: {FetchProgress.of(clone).words()}, for {format_duration(clone['seconds'])}")


def _fleet(fleet: Mapping[str, Any]) -> str:
    waits = sum(fleet["waiting"].values())
    is_up = "connected" if fleet["connected"] else "not connected"
    return f"fleet {fleet['name']}, as {fleet['node']}: {is_up}{f'; {waits:,} to go out' if waits else ''}"


@click.command()
@json_option
@pass_options
def egress(options: Options, as_json: bool) -> None:
    """Print the entries for a guest's egress allowlist.

    Prints the host:port of each listener for guests, one per line, and nothing else.

    \b
    Example:
      gitmirror.pyz egress >> allowlist.txt
    """
    from appliance.core.ops.egress import egress_entries

    entries = egress_entries(options.node())
    if as_json:
        print_json(entries)
    else:
        for entry in entries:
            print_line(entry)


@click.command()
@json_option
@pass_options
def doctor(options: Options, as_json: bool) -> None:
    """Check everything that serving needs.

    Checks git, git daemon, disk, permissions, ports, config, hooks and the known state of the mirrors, and says how to
    fix each. Exits with code 3 when a check fails.

    \b
    Example:
      gitmirror.pyz doctor
    """
    from appliance.core.ops.doctor import examine

    checks = examine(options.node(anyone=True))
    if as_json:
        print_json([{"name": c.name, "ok": c.ok, "found": c.found, "mend": c.mend} for c in checks])
    else:
        for check in checks:
            print_line(f"{'ok  ' if check.ok else 'FAIL'}  {check.name}: {check.found}")
            if not check.ok:
                print_line(f"      fix: {check.mend}")
    if not all(check.ok for check in checks):
        sys.exit(NOT_HEALTHY)
