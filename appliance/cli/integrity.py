"""Finds and heals damaged mirrors: `verify`, `heal`."""

from __future__ import annotations

import sys
from typing import Any

import click

from appliance.cli.context import Options, json_option, pass_options
from appliance.cli.output import print_json, print_line, say
from appliance.core.units import format_duration

DAMAGED = 3
NOT_DONE = 1
MOST_SHOWN = 20


@click.command()
@click.argument("names", nargs=-1, metavar="[REPO]...")
@click.option("--full", is_flag=True, help="Read the content of every object too. Takes far longer.")
@json_option
@pass_options
def verify(options: Options, names: tuple[str, ...], full: bool, as_json: bool) -> None:
    """Inspect mirrors for damage now.

    Checks that every object and every recorded turn exists; with --full, also that the content of each object is right.
    Without a REPO, inspects all mirrors. A running serve heals what is found. Exits with code 3 when a mirror is
    damaged, and with 1 when one could not be inspected.

    \b
    Example:
      gitmirror.pyz verify jomcgi/homelab --full
    """
    found = options.node().current().verify(list(names), say, full=full)
    if as_json:
        print_json(found)
    for document in [] if as_json else found:
        _print_inspection(document)
    if any(document["whole"] is False for document in found):
        sys.exit(DAMAGED)
    if any(document["error"] for document in found):
        sys.exit(NOT_DONE)


@click.command()
@click.argument("name", metavar="REPO")
@json_option
@pass_options
def heal(options: Options, name: str, as_json: bool) -> None:
    """Inspect one mirror and heal it now.

    A running serve heals mirrors by itself; this command does it at once. Restores the refs of sessions and turns, and
    fetches what is missing or damaged from the upstream. Every session that can still be read is kept. Exits with code
    3 when the mirror is still damaged afterwards.

    \b
    Example:
      gitmirror.pyz heal jomcgi/homelab
    """
    healed = options.node().current().heal(name)
    if as_json:
        print_json(healed)
    else:
        _print_healing(healed)
    if not healed["whole"]:
        sys.exit(DAMAGED)


def _print_inspection(document: dict[str, Any]) -> None:
    name = document["repo"]
    if document["error"]:
        say(f"{name}: could not be inspected: {document['error']}")
    elif document["whole"]:
        print_line(f"{name}: whole{' to the last byte' if document['full'] else ''} ({_took(document)})")
    else:
        print_line(f"{name}: DAMAGED ({_took(document)})")
        for fault in document["faults"][:MOST_SHOWN]:
            print_line(f"  {fault}")
        _print_lost(document["lost"], "missing")


def _print_healing(healed: dict[str, Any]) -> None:
    name = healed["repo"]
    for done in healed["done"]:
        print_line(f"  {done}")
    if healed["evidence"]:
        print_line(f"  what was damaged is kept in {healed['evidence']}")
    _print_lost(healed["lost"], "lost")
    if not healed["whole"]:
        print_line(f"{name}: still damaged: {healed['damage']}")
    elif healed["done"]:
        print_line(f"{name}: healed")
    else:
        print_line(f"{name}: whole, nothing to heal")


def _print_lost(lost: list[dict[str, str]], word: str) -> None:
    for each in lost[:MOST_SHOWN]:
        print_line(f"  {word}: {each['ref']} at {each['commit']}")
    if len(lost) > MOST_SHOWN:
        print_line(f"  and {len(lost) - MOST_SHOWN} more; --json lists all")


def _took(document: dict[str, Any]) -> str:
    return format_duration(document["seconds"])
