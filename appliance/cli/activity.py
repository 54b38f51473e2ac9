"""`activity`: the history of hydrations, and those that run now."""

from __future__ import annotations

import time
from typing import Any

import click

from appliance.cli.context import Options, json_option, pass_options
from appliance.cli.output import print_cells, print_json, print_json_line, print_table, say
from appliance.core.errors import UsageError
from appliance.core.units import format_duration, format_size

POLL = 0.5
HEADERS = ("AT", "REPOSITORY", "SHAPE", "WAY", "ENDED", "PROTOCOL", "BYTES", "FIRST BYTE", "TOOK", "CLIENT", "GUEST")
RIGHT = ("BYTES", "FIRST BYTE", "TOOK", "OF", "SPEED", "SINCE")
NOW = ("SINCE", "REPOSITORY", "SHAPE", "WAY", "PROTOCOL", "BYTES", "OF", "SPEED", "CLIENT", "GUEST")
ENDS = {"aborted": "broken off"}
"""How an outcome is called where people read it, if not by its own word."""


@click.command()
@click.option("--repo", metavar="R", help="Show only this repository.")
@click.option("--guest", metavar="NAME", help="Show only what this known guest fetched.")
@click.option(
    "--limit", metavar="N", type=click.IntRange(1), default=50, show_default=True, help="Show at most this many rows."
)
@click.option(
    "--follow", is_flag=True, help="Keep printing new rows, one a line, until Ctrl-C; with --json, as JSON lines."
)
@click.option("--now", is_flag=True, help="Show what guests are being sent at this moment instead, oldest first.")
@json_option
@pass_options
def activity(
    options: Options, repo: str | None, guest: str | None, limit: int, follow: bool, now: bool, as_json: bool
) -> None:
    """List hydrations, newest first.

    Each row says which guest fetched what, how it was served, how it ended, and how fast. A hydration that its guest
    broke off shows the bytes that were sent. With --follow, the oldest come first.

    \b
    Examples:
      gitmirror.pyz activity --repo jomcgi/homelab --limit 10
      gitmirror.pyz activity --follow
      gitmirror.pyz activity --now
    """
    if now:
        if follow:
            raise UsageError("--now and --follow exclude each other", hint="`activity --follow` prints what has ended")
        _print_running(options, repo, guest, limit, as_json)
        return
    node = options.node()
    store = node.stores().activity
    found = store.newest(limit, repo=repo, guest=guest)
    node.expect(repo, found)
    if not follow:
        if as_json:
            print_json(found)
        else:
            print_table(HEADERS, [_row(row) for row in found], right=RIGHT)
        return
    last = 0
    batch = list(reversed(found))
    try:
        while True:
            for row in batch:
                last = max(last, row["id"])
                if repo in (None, row["repo"]) and guest in (None, row["guest"]):
                    if as_json:
                        print_json_line(row)
                    else:
                        print_cells(_row(row))
            time.sleep(POLL)
            batch = store.after(last)
    except KeyboardInterrupt:
        return


def _print_running(options: Options, repo: str | None, guest: str | None, limit: int, as_json: bool) -> None:
    """Prints the hydrations that run now."""
    running = [
        each
        for each in options.node().current().transfers()
        if repo in (None, each["repo"]) and guest in (None, each["guest"])
    ][:limit]
    if as_json:
        print_json(running)
    elif running:
        print_table(NOW, [_running_row(each) for each in running], right=RIGHT)
    else:
        say("No guest is being sent anything now.")


def _running_row(row: dict[str, Any]) -> tuple[Any, ...]:
    speed = round(row["bytes"] / row["seconds"]) if row["seconds"] else 0
    return (
        format_duration(row["seconds"]),
        row["repo"],
        row["shape"],
        row["way"] or "being looked for",
        row["protocol"],
        format_size(row["bytes"]),
        "" if row["size"] is None else format_size(row["size"]),
        f"{format_size(speed)}/s",
        row["client"],
        row["guest"],
    )


def _row(row: dict[str, Any]) -> tuple[Any, ...]:
    return (
        row["at"],
        row["repo"],
        row["shape"],
        row["way"],
        ENDS.get(row["outcome"], row["outcome"]),
        row["protocol"],
        format_size(row["bytes"]),
        format_duration(row["first_byte"]),
        format_duration(row["seconds"]),
        row["client"],
        row["guest"],
    )
