"""`activity`: the history of hydrations."""

from __future__ import annotations

import time
from typing import Any

import click

from appliance.cli.context import Options, json_option, pass_options
from appliance.cli.output import print_cells, print_json, print_json_line, print_table
from appliance.core.units import format_duration, format_size

POLL = 0.5
HEADERS = ("AT", "REPOSITORY", "SHAPE", "WAY", "PROTOCOL", "BYTES", "FIRST BYTE", "TOOK", "CLIENT", "GUEST")
RIGHT = ("BYTES", "FIRST BYTE", "TOOK")


@click.command()
@click.option("--repo", metavar="R", help="Show only this repository.")
@click.option("--guest", metavar="NAME", help="Show only what this known guest fetched.")
@click.option(
    "--limit", metavar="N", type=click.IntRange(1), default=50, show_default=True, help="Show at most this many rows."
)
@click.option(
    "--follow", is_flag=True, help="Keep printing new rows, one a line, until Ctrl-C; with --json, as JSON lines."
)
@json_option
@pass_options
def activity(options: Options, repo: str | None, guest: str | None, limit: int, follow: bool, as_json: bool) -> None:
    """List hydrations, newest first.

    Each row says which guest fetched what, how it was served, and how fast. With --follow, the oldest come first.

    \b
    Examples:
      gitmirror.pyz activity --repo jomcgi/homelab --limit 10
      gitmirror.pyz activity --follow
    """
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


def _row(row: dict[str, Any]) -> tuple[Any, ...]:
    return (
        row["at"],
        row["repo"],
        row["shape"],
        row["way"],
        row["protocol"],
        format_size(row["bytes"]),
        format_duration(row["first_byte"]),
        format_duration(row["seconds"]),
        row["client"],
        row["guest"],
    )
