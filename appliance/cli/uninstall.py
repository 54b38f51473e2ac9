"""`uninstall`: parses, asks and prints; `appliance.core.ops.uninstall` does the work."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from appliance.cli.output import ask, print_line, say


@click.command()
@click.option(
    "--root",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("/"),
    help="Remove what is below DIR, as `install --root DIR` wrote it; leave the user and systemd alone.",
    metavar="DIR",
)
@click.option("--purge", is_flag=True, help="Also delete the state, with everything agents recorded, and the settings.")
@click.option("--yes", is_flag=True, help="Do not ask before a purge.")
def uninstall(root: Path, purge: bool, yes: bool) -> None:
    """Take gitmirror off this machine, and keep what was recorded.

    Stops and disables the sockets and the service, and removes what `install` wrote: the units, the file, the man page
    and the completion scripts. The state directory, the configuration and the user stay, and the command says how to
    remove them. With --purge, it deletes them too, after it has named them and asked.

    \b
    Examples:
      sudo gitmirror.pyz uninstall
      sudo gitmirror.pyz uninstall --purge
      ./gitmirror.pyz uninstall --root /tmp/look
    """
    from appliance.core.ops.uninstall import plan_uninstall

    plan = plan_uninstall(root, purge=purge)
    if plan.purged and not yes:
        say("This deletes for good:")
        for each in plan.purged:
            say(f"  {each}")
        if not ask("Delete all of it, and uninstall?"):
            say("Nothing was changed.")
            sys.exit(1)
    for step in plan.steps:
        step.apply()
        print_line(step.text)
    if not plan.steps:
        print_line("gitmirror is not installed here")
    if plan.left:
        print_line("left, with the command that removes it:")
    for what, command in plan.left:
        print_line(f"  {what}: {command}")
