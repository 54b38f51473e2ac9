"""`install`: parses and prints; `appliance.core.ops.install` does the work."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from appliance.cli.output import print_line


@click.command()
@click.option(
    "--root",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("/"),
    help="Write everything below DIR instead, for an image or a dry run; create no user and leave systemd alone.",
    metavar="DIR",
)
@click.option("--now", is_flag=True, help="Also enable and start the service, or restart it with this version.")
def install(root: Path, now: bool) -> None:
    """Install or upgrade gitmirror on this machine, under systemd.

    Copies this file to /usr/local/bin/gitmirror.pyz, writes the systemd units and a configuration file with every
    default (an existing one is left alone), and creates the service's user and the state directory. Also puts a man
    page and completion scripts into place. To upgrade, run it again with a newer file: the sockets stay open, so no
    guest is refused. `uninstall` takes it off again.

    \b
    Examples:
      sudo ./gitmirror.pyz install --now
      ./gitmirror.pyz install --root /tmp/look
    """
    from appliance.core.ops.install import plan_install, running_program

    plan = plan_install(root, running_program(sys.argv[0]), start=now)
    for step in plan.steps:
        step.apply()
        print_line(step.text)
    print_line("next:")
    for command in plan.next_commands:
        print_line(f"  {command}")
