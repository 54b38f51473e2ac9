"""Backups of what exists only on this node: `backup`, `backup verify`, `restore`."""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import replace
from pathlib import Path

import click

from appliance.cli.context import Moment, Options, json_option, pass_options
from appliance.cli.fleet_restore import restore_node
from appliance.cli.groups import OwnArgument, ValueOrCommand
from appliance.cli.output import print_json, print_line, say
from appliance.core.errors import UsageError
from appliance.core.units import format_size

DAMAGED = 3


@click.group(cls=ValueOrCommand, invoke_without_command=True)
@click.argument("directory", cls=OwnArgument, metavar="[DIR]", required=False)
@json_option
@pass_options
@click.pass_context
def backup(ctx: click.Context, options: Options, directory: str | None, as_json: bool) -> None:
    """Back up recordings, the audit log and the registry.

    Writes to DIR, or to the directory of [backup] in the configuration. Adds only what earlier backups there do not
    hold. Works with and without a running serve, and always writes as serve's user, because serve adds to the same
    files. Exits with code 3 when a repository could not be backed up.

    \b
    Examples:
      gitmirror.pyz backup /mnt/backup/node1
      gitmirror.pyz backup verify /mnt/backup/node1
    """
    if ctx.invoked_subcommand is not None:
        return
    # A running serve has another working directory.
    done = options.node().current().backup(os.path.abspath(directory) if directory else None)
    if as_json:
        print_json(done)
    else:
        for problem in done["problems"]:
            say(problem)
        print_line(
            f"{done['to']}: {done['turns']} turns of {done['repositories']} repositories; "
            f"{format_size(done['written'])} written, {format_size(done['bytes'])} to restore"
        )
    if done["problems"]:
        sys.exit(DAMAGED)


@backup.command()
@click.argument("directory", metavar="DIR")
@json_option
@pass_options
def verify(options: Options, directory: str, as_json: bool) -> None:
    """Prove that the backups in DIR can be restored.

    Reads every file, checks each database and its audit log, and unpacks every bundle in a scratch directory. Names
    each damaged file and exits with code 3 when there is one. The node remembers when it last did that, and `status`
    and the live view say so.

    \b
    Example:
      gitmirror.pyz backup verify /mnt/backup/node1
    """
    from appliance.core.backup.proof import note_proof
    from appliance.core.backup.verification import verify_backups
    from appliance.core.config.settings import find_state
    from appliance.core.layout import Layout
    from appliance.core.process.owner import become_owner_of

    report = verify_backups(Path(directory).absolute())
    state = find_state(options.state, os.environ)
    # After the backups were read, which perhaps only root may. Root writes nothing where another user places links.
    become_owner_of(state)
    # Whoever may read the backups need not own the state directory.
    with contextlib.suppress(OSError):
        note_proof(Layout(state), report)
    if as_json:
        print_json(report.document())
    else:
        for fault in report.faults:
            say(f"{fault['path']}: {fault['fault']}")
        summary = f"{report.backups} backups, the newest of {report.newest}; {format_size(report.bytes)}"
        print_line(f"{summary}, {len(report.faults)} faults" if report.faults else f"{summary}, all can be restored")
    if report.faults:
        sys.exit(DAMAGED)


@click.command()
@click.argument("directory", metavar="[DIR]", required=False)
@click.option("--from-fleet", "node_name", metavar="NODE", help="Rebuild this dead node from what its fleet has.")
@click.option(
    "--state", metavar="NEW", help="The state directory to restore into. Default: the one given before the command."
)
@click.option(
    "--before",
    type=Moment(),
    help="Restore the newest backup made before WHEN: 2h (two hours ago), or 2026-11-26T08:00:00Z.",
)
@click.option(
    "--database", "only_database", is_flag=True, help="Replace only the database; mirrors that can be read stay."
)
@click.option("--even-if-alive", is_flag=True, help="With --from-fleet: also if NODE runs now.")
@click.option("--yes", is_flag=True, help="If the state directory was used, move what is there aside.")
@json_option
@pass_options
def restore(
    options: Options,
    directory: str | None,
    node_name: str | None,
    state: str | None,
    before: str | None,
    only_database: bool,
    even_if_alive: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Restore a state directory from a backup, or from the fleet.

    Restores the newest backup in DIR into an empty or absent state directory. Needs no upstream. The next serve fetches
    branches and tags; the sessions can be read at once. Run it as the user that runs serve. Nothing is deleted: with
    --yes, what was in the directory is moved into one below it. Turns that its mirrors hold and the backup lacks are
    taken over, and the next serve records them again. With --database, the mirrors stay and are served at once.

    With --from-fleet, the new node goes on as NODE once its serve runs with `node = NODE` in [fleet]: it has the
    registry, the sessions and the attachments that the fleet has, and mirrors from its neighbours or the upstreams.
    What the fleet did not have yet when NODE died is lost. If it is killed, run it again.

    \b
    Examples:
      gitmirror.pyz restore /mnt/backup/node1 --state /var/lib/gitmirror
      gitmirror.pyz restore /mnt/backup/node1 --database --yes
      gitmirror.pyz restore --from-fleet node-2 --state /var/lib/gitmirror
    """
    from appliance.core.backup.restoring import restore as restore_backup
    from appliance.core.node.state_dir import wanted_of_config

    node = (replace(options, state=state) if state else options).node()
    if node_name is not None:
        if directory is not None or before is not None or only_database:
            raise UsageError("--from-fleet goes without DIR, --before and --database", hint="give one or the other")
        restore_node(node, node_name, yes, even_if_alive, as_json)
        return
    if directory is None:
        raise UsageError(
            "there is nothing to restore from", hint="name the directory of a backup, or --from-fleet NODE"
        )
    report = restore_backup(
        Path(directory).absolute(),
        node.layout,
        move_aside=yes,
        before=before,
        only_database=only_database,
        listed=frozenset(wanted.name for wanted in wanted_of_config(node.config)),
    )
    if as_json:
        print_json(report.document())
        return
    for skipped in report.skipped:
        say(f"skipped: {skipped}")
    if report.aside:
        replaced = "the database that" if only_database else "what"
        say(f"{replaced} was in {report.state} is now in {report.aside}")
    for problem in report.unread:
        say(f"{problem}; turns newer than the backup, if there were any, exist only there")
    for name, count in sorted(report.newer.items()):
        say(f"{name}: {count} turns newer than the backup are kept; the next serve records them again")
    for name, url in sorted(report.unregistered.items()):
        say(f"{name} is not in the registry of the backup: gitmirror.pyz add-repo {url} --name {name}")
    print_line(
        f"{report.state} is as of {report.at}: {report.turns} turns in {report.sessions} sessions of "
        f"{report.repositories} repositories; audit head {report.audit_head}"
    )
