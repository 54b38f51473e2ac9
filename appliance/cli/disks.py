"""Workspaces as drives for the VM of a guest: `disk`, `disk release`, `disks`."""

from __future__ import annotations

import os
import re
import time
from datetime import datetime
from typing import Any

import click

from appliance.cli.context import Duration, Options, json_option, pass_options
from appliance.cli.groups import OwnArgument, ValueOrCommand
from appliance.cli.output import print_json, print_line, print_table, say
from appliance.core.errors import UsageError
from appliance.core.text import storable
from appliance.core.units import format_duration, format_size

MOST_MISSING = 10
"""The most missing things that are printed."""


class _Commit(click.ParamType[str]):
    """A full commit id."""

    name = "commit"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Returns the id in lower case, as git writes it."""
        if not re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", str(value).lower()):
            self.fail(f"{value!r} is not a full commit id, which has 40 or 64 hexadecimal digits", param, ctx)
        return str(value).lower()


@click.group(cls=ValueOrCommand, invoke_without_command=True)
@click.argument("repo", cls=OwnArgument, metavar="REPO")
@click.option("--branch", metavar="B", help="The branch to lease. Default: the followed branch.")
@click.option("--commit", type=_Commit(), metavar="OID", help="A full commit id, instead of a branch.")
@click.option(
    "--guest",
    metavar="NAME",
    help="A label, shown by `disks`. A known guest of this name also gets the private submodules that it may read.",
)
@click.option("--ttl", type=Duration(), default="24h", show_default=True, metavar="D", help="How long the lease lasts.")
@click.option("--single", is_flag=True, help="Put everything on one drive, with no data drive.")
@click.option(
    "--format",
    "file_system",
    type=click.Choice(["erofs", "ext4"]),
    default="erofs",
    show_default=True,
    help="The file system. ext4, for kernels without EROFS, is always one drive.",
)
@click.option(
    "--submodules/--no-submodules",
    default=None,
    help="Include submodules that are mirrored here. Default: `[workspace] submodules`.",
)
@json_option
@pass_options
@click.pass_context
def disk(
    ctx: click.Context,
    options: Options,
    repo: str,
    branch: str | None,
    commit: str | None,
    guest: str | None,
    ttl: float,
    single: bool,
    file_system: str,
    submodules: bool | None,
    as_json: bool,
) -> None:
    """Lease a workspace as read-only drives.

    Waits until the drives are built, and prints the paths to attach to the guest's VM. The drives do not change until
    the lease ends. The guest mounts them instead of copying a workspace. Needs a running serve. docs/disks.md describes
    what the node and the guest have to do.

    \b
    Examples:
      gitmirror.pyz disk jomcgi/homelab --guest vm-7 --ttl 2h
      gitmirror.pyz disk jomcgi/homelab --branch main --format ext4 --json
      gitmirror.pyz disk release 1f0c2a9b
    """
    if ctx.invoked_subcommand is not None:
        return
    from appliance.core.store.disk_leases import LONGEST

    if branch is not None and commit is not None:
        raise UsageError("--branch and --commit cannot be combined", hint="give one of them")
    for name, value in (("--branch", branch), ("--guest", guest)):
        if value == "":
            raise UsageError(f"{name} must not be empty", hint="leave the option out, or give it a name")
    if ttl > LONGEST:
        raise UsageError(f"--ttl may be at most {format_duration(LONGEST)}", hint="for example --ttl 24h")
    request = {
        "branch": branch and storable(branch),
        "commit": commit,
        "guest": guest,
        "ttl": ttl,
        "single": single,
        "format": file_system,
    }
    if submodules is not None:
        request["submodules"] = submodules
    leased = options.node().current().lease_disk(repo, request)
    if as_json:
        print_json(leased)
    else:
        _print_lease(leased, options)


def _print_lease(leased: dict[str, Any], options: Options) -> None:
    print_line(f"{leased['repo']} {leased['branch']} at {leased['commit']}")
    print_line("")
    rows = [(drive["role"], _size_of(drive["path"]), drive["path"]) for drive in leased["drives"]]
    print_table(("DRIVE", "SIZE", "PATH"), rows, right=("SIZE",))
    print_line("")
    print_line(f"in the guest:  {leased['mount']}")
    print_line(f"leased until:  {leased['expires_at']} (in {_ends_in(leased)})")
    print_line(f"to end it:     {options.command} disk release {leased['id']}")
    for each in leased["missing"][:MOST_MISSING]:
        say(f"left out: {each['path']} ({each['reason']})")
    if len(leased["missing"]) > MOST_MISSING:
        say(f"and {len(leased['missing']) - MOST_MISSING} more: --json lists them")


def _size_of(path: str) -> str | None:
    """The size of a drive, or None if this user may not look at it."""
    try:
        return format_size(os.stat(path).st_size)
    except OSError:
        return None


@disk.command()
@click.argument("lease", metavar="ID")
@json_option
@pass_options
def release(options: Options, lease: str, as_json: bool) -> None:
    """End a lease.

    Its drives may be removed from then on. A guest that still has them attached can go on reading them.

    \b
    Example:
      gitmirror.pyz disk release 1f0c2a9b
    """
    released = options.node().current().release_disk(lease)
    if as_json:
        print_json(released)
    say(f"lease {lease} of {released['repo']} has ended")


@click.command()
@json_option
@pass_options
def disks(options: Options, as_json: bool) -> None:
    """List leases, newest first.

    \b
    Example:
      gitmirror.pyz disks
    """
    found = options.node().current().disks()
    if as_json:
        print_json(found)
        return
    if not found:
        say("No disk is leased: gitmirror.pyz disk REPO")
        return
    headers = ("ID", "REPOSITORY", "BRANCH", "COMMIT", "GUEST", "FORM", "ENDS IN")
    rows = [
        (
            lease["id"], lease["repo"], lease["branch"], lease["commit"][:12], lease["guest"], lease["form"],
            _ends_in(lease),
        )
        for lease in found
    ]  # fmt: skip
    print_table(headers, rows, right=("ENDS IN",))


def _ends_in(lease: dict[str, Any]) -> str:
    """The time that a lease has left."""
    return format_duration(max(datetime.fromisoformat(lease["expires_at"]).timestamp() - time.time(), 0.0))
