"""`install`: parses and prints; what it does is `appliance.core.ops.install`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from appliance.cli.output import print_line
from appliance.core.ops.install import REAL_ROOT, plan_install, running_program


@click.command()
@click.option(
    "--root",
    type=click.Path(file_okay=False, path_type=Path),
    default=REAL_ROOT,
    help="Write below DIR instead: for an image, or to look. Makes no user, leaves systemd alone.",
    metavar="DIR",
)
@click.option("--now", is_flag=True, help="Also enable and start it, or restart it with this version.")
def install(root: Path, now: bool) -> None:
    """Install or upgrade gitmirror on this machine, under systemd.

    Writes the units, a configuration with every default (an existing one is kept), the service's user, the
    state directory and this very file as /usr/local/bin/gitmirror.pyz. Run it again with a newer file to
    upgrade: the sockets stay open, so no guest is refused.

    \b
    Example:
      sudo ./gitmirror.pyz install --now
      ./gitmirror.pyz install --root /tmp/look
    """
    plan = plan_install(root, running_program(sys.argv[0]), start=now)
    for step in plan.steps:
        step.apply()
        print_line(step.text)
    print_line("next:")
    for command in plan.next_commands:
        print_line(f"  {command}")
