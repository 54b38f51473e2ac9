"""The registry: `add-repo`, `remove-repo`, `enable`, `disable`, `repos`, `refresh`, `refreshes`."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.context import Duration, Options, json_option, pass_options
from appliance.cli.output import ask, print_json, print_line, print_table, say, say_what_is_local
from appliance.cli.progress import CloneProgress
from appliance.core.units import format_duration

if TYPE_CHECKING:
    from appliance.core.node.node import Node

MOST_NAMED = 20
"""The most sessions that a question names."""


@click.command("add-repo")
@click.argument("url")
@click.option(
    "--name", metavar="OWNER/REPO", help="The name guests use. Default: the last two parts of the URL's path."
)
@click.option(
    "--branch", metavar="B", help="The branch of the snapshot and of cache warming. Default: the upstream's HEAD."
)
@click.option("--interval", type=Duration(), metavar="D", help="A refresh interval for this repository, such as 30s.")
@click.option("--allow-local", is_flag=True, help="Allow a file:// URL or a path as the upstream.")
@click.option("--no-wait", is_flag=True, help="Register and return; serve makes the first clone in the background.")
@json_option
@pass_options
def add_repo(
    options: Options,
    url: str,
    name: str | None,
    branch: str | None,
    interval: float | None,
    allow_local: bool,
    no_wait: bool,
    as_json: bool,
) -> None:
    """Register an upstream and wait for its first clone.

    Adding the same URL again changes only the options that you give. If the first clone fails, the exit code is 1;
    the repository stays registered, and serve tries the clone again. In a fleet, every node registers it.

    \b
    Example:
      gitmirror.pyz add-repo https://github.com/jomcgi/homelab --interval 30s
    """
    if not url.startswith("-") and "://" not in url and (allow_local or url.startswith((".", "/"))):
        # Only a local path may be relative, and serve has another working directory.
        url = os.path.abspath(url) if os.path.exists(url) else url
    arguments = {
        "url": url,
        "name": name,
        "branch": branch,
        "interval": interval,
        "allow_local": allow_local,
        "wait": not no_wait,
    }
    with CloneProgress() as progress:
        added = options.node(create=True).current().add(arguments, progress.take)
    if as_json:
        print_json(added)
    if added["error"]:
        say(f"{added['name']} is registered, but its first clone failed: {added['error']}")
        say("serve tries again while it runs; see `status`.")
        sys.exit(1)
    if not as_json:
        say(f"{added['name']} is registered ({added['state']})")
        if added["private"]:
            say(f"It is private. To let a guest read it: gitmirror.pyz token issue --repo {added['name']}")


@click.command("remove-repo")
@click.argument("name")
@click.option("--purge", is_flag=True, help="Also delete the mirror, every session recorded in it, and its disks.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@pass_options
def remove_repo(options: Options, name: str, purge: bool, yes: bool) -> None:
    """Stop refreshing and serving a repository.

    The mirror stays on disk unless --purge is given. --purge first lists the sessions and counts the leases of disks
    that it ends, and asks for confirmation. To remove a repository that the config lists, edit the config. In a
    fleet, every node removes or purges it.

    \b
    Example:
      gitmirror.pyz remove-repo jomcgi/homelab --purge --yes
    """
    node = _node_that_has(name, options)
    if purge and not yes and not _confirm_purge(name, node.recorded_in(name), node.leases_of(name)):
        say("Nothing was changed.")
        sys.exit(1)
    node.current().remove(name, purge=purge)
    say(f"{name} is removed{' and its mirror deleted' if purge else '; its mirror stays on disk'}")


def _node_that_has(name: str, options: Options) -> Node:
    """The node, whose state directory is made, where there is none, only for a repository that the config lists."""
    from appliance.core.node.state_dir import wanted_of_config

    node = options.node()
    if not node.layout.database.exists() and any(each.name == name for each in wanted_of_config(node.config)):
        return replace(node, create=True)
    return node


def _confirm_purge(name: str, sessions: list[dict[str, Any]], leases: int) -> bool:
    """Lists what a purge would end, and asks for confirmation."""
    if leases:
        say(f"This deletes the disks of {name} and ends {_count(leases, 'lease')} of them; see `disks`.")
    if not sessions:
        return ask(f"Delete the mirror of {name}? No session is recorded in it.")
    turns = sum(session["turns"] for session in sessions)
    say(f"This deletes the mirror of {name} and ends {_count(len(sessions), 'session')} with {_count(turns, 'turn')}:")
    for session in sessions[:MOST_NAMED]:
        kept = ", kept" if session["kept"] else ""
        say(f"  {session['session']}: {_count(session['turns'], 'turn')}, last {session['last_at']}{kept}")
    if len(sessions) > MOST_NAMED:
        say(f"  and {len(sessions) - MOST_NAMED} more; see `sessions --repo {name}`")
    say(f"A damaged mirror needs no purge: `heal {name}` keeps its sessions.")
    return ask(f"Delete the mirror of {name} and every session recorded in it?")


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


@click.command()
@click.argument("name")
@pass_options
def enable(options: Options, name: str) -> None:
    """Refresh and serve a disabled repository again.

    In a fleet, every node does.

    \b
    Example:
      gitmirror.pyz enable jomcgi/homelab
    """
    _node_that_has(name, options).current().change(name, {"enabled": True})
    say(f"{name} is enabled")


@click.command()
@click.argument("name")
@pass_options
def disable(options: Options, name: str) -> None:
    """Stop refreshing and serving a repository, but delete nothing.

    In a fleet, every node does. `enable` takes it back.

    \b
    Example:
      gitmirror.pyz disable jomcgi/homelab
    """
    _node_that_has(name, options).current().change(name, {"enabled": False})
    say(f"{name} is disabled; nothing was deleted")


@click.command()
@json_option
@pass_options
def repos(options: Options, as_json: bool) -> None:
    """List the registered repositories.

    \b
    Example:
      gitmirror.pyz repos --json | jq -r '.[].name'
    """
    node = options.node()
    found = node.current().repos()
    if as_json:
        print_json(found)
        return
    if not found:
        say("No repository is registered: gitmirror.pyz add-repo URL")
        return
    headers = ("NAME", "STATE", "BRANCH", "INTERVAL", "SOURCE", "READERS", "URL")
    rows = [
        (
            r["name"], r["state"], r["branch"], format_duration(r["interval"]), r["source"], r["readers"] or "all",
            r["url"],
        )
        for r in found
    ]  # fmt: skip
    print_table(headers, rows, right=("INTERVAL",))
    if node.config.fleet.is_on:
        say_what_is_local(found)


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@json_option
@pass_options
def refresh(options: Options, names: tuple[str, ...], as_json: bool) -> None:
    """Refresh repositories now and wait for the result.

    Without a NAME, refreshes every enabled repository.

    \b
    Example:
      gitmirror.pyz refresh jomcgi/homelab
    """
    outcomes = options.node().current().refresh(list(names))
    if as_json:
        print_json(outcomes)
    for outcome in [] if as_json else outcomes:
        detail = outcome["error"] or _moves(outcome["moved"])
        print_line(f"{outcome['repo']}: {outcome['result']} in {format_duration(outcome['duration'])}: {detail}")
        for change in outcome["moved"][:20]:
            print_line(f"  {_short(change['old'])} -> {_short(change['new'])}  {change['ref']}")
    if any(outcome["error"] for outcome in outcomes):
        sys.exit(1)


@click.command()
@click.argument("name", required=False)
@click.option(
    "--limit", metavar="N", default=50, show_default=True, type=click.IntRange(1), help="Show at most this many rows."
)
@json_option
@pass_options
def refreshes(options: Options, name: str | None, limit: int, as_json: bool) -> None:
    """List past refreshes, newest first.

    \b
    Example:
      gitmirror.pyz refreshes jomcgi/homelab --limit 10
    """
    found = options.node().refreshes(name, limit)
    if as_json:
        print_json(found)
        return
    rows = [
        (
            r["started_at"],
            r["repo"],
            r["result"],
            format_duration(r["duration"]),
            r["error"] or _moves(r["moved"]),
        )
        for r in found
    ]
    print_table(("STARTED", "REPOSITORY", "RESULT", "TOOK", "WHAT"), rows, right=("TOOK",))


def _moves(moved: list[dict[str, Any]]) -> str:
    return f"{len(moved)} ref{'' if len(moved) == 1 else 's'} moved" if moved else "nothing moved"


def _short(oid: str | None) -> str:
    return oid[:12] if oid else "(none)".ljust(12)
