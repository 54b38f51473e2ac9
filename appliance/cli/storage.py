"""What fills the disk: `storage`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from appliance.cli.context import Options, json_option, pass_options
from appliance.cli.output import print_json, print_line, print_table
from appliance.core.units import format_size

MOST_LISTED = 20
"""Entries of what goes next, and of what went last, that are printed."""
HEADERS = ("REPOSITORY", "TOTAL", "MIRROR", "ANSWERS", "WORKSPACES", "DISKS", "LFS", "RECORDED")
KINDS = ("mirrors", "answers", "workspaces", "disks", "lfs", "recordings")


@click.command()
@json_option
@pass_options
def storage(options: Options, as_json: bool) -> None:
    """Show what fills the disk, and what is removed next.

    Lists what the state directory takes, by kind and by repository, the largest first. Above `[storage] budget`, or
    when the disk is nearly full, a running serve removes what can be made or fetched again: this shows what it removes
    next, and what it removed last. Recordings and the mirrors of registered repositories are never removed.

    \b
    Example:
      gitmirror.pyz storage
    """
    found = options.node().current().storage()
    if as_json:
        print_json(found)
    else:
        _print(found)


def used_of(found: Mapping[str, Any]) -> str:
    """`12 GiB of its budget of 200 GiB`, or without a budget what is taken and what the disk has room for."""
    used, most = format_size(found["used"]), format_size(found["budget"])
    return f"{used} of its budget of {most}" if found["has_budget"] else f"{used}, and its disk has room for {most}"


def by_kind(found: Mapping[str, Any]) -> str:
    """The kinds that take something, the largest first."""
    taken = sorted(found["by"].items(), key=lambda each: -each[1])
    return ", ".join(f"{kind} {format_size(size)}" for kind, size in taken if size)


def in_words(thing: Mapping[str, Any]) -> str:
    """One thing that can go: `the snapshot of main (acme/widgets, 12 MiB)`."""
    whose = f"{thing['repo']}, " if thing["repo"] else ""
    return f"{thing['what']} ({whose}{format_size(thing['bytes'])})"


def _print(found: Mapping[str, Any]) -> None:
    print_line(f"the state directory takes {used_of(found)}")
    print_line(f"  {by_kind(found)}")
    if found["over"]:
        print_line(f"  {format_size(found['over'])} over the budget: what is left is in use or must not be removed")
    if found["repos"]:
        print_line("")
        rows = [
            (repo["name"], format_size(repo["bytes"]), *(_shown(repo["by"][kind]) for kind in KINDS))
            for repo in found["repos"]
        ]
        print_table(HEADERS, rows, right=HEADERS[1:])
    _list("removed next, in this order", found["next"])
    _list("removed last", found.get("removed_last", ()))


def _shown(size: int) -> str:
    return format_size(size) if size else ""


def _list(heading: str, things: Sequence[Mapping[str, Any]]) -> None:
    if things:
        print_line("")
        print_line(f"{heading}:")
    for thing in things[:MOST_LISTED]:
        when = f"{thing['at']}  " if "at" in thing else ""
        print_line(f"  {when}{in_words(thing)}")
    if len(things) > MOST_LISTED:
        print_line(f"  and {len(things) - MOST_LISTED:,} more")
