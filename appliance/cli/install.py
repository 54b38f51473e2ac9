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
@click.option(
    "--listen",
    multiple=True,
    metavar="ADDRESS",
    help="Serve guests at this address too, on ports 9418 and 9419: 10.0.0.1, 0.0.0.0, unix:/DIR or vsock. May be "
    "repeated. Without it, the addresses stay as they are: at first 127.0.0.1 alone.",
)
def install(root: Path, now: bool, listen: tuple[str, ...]) -> None:
    """Install or upgrade gitmirror on this machine, under systemd.

    Copies this file to /usr/local/bin/gitmirror.pyz, writes the systemd units and a configuration file with every
    default (an existing one is left alone), and creates the service's user and the state directory. Also puts a man
    page and completion scripts into place. To upgrade, run it again with a newer file: the sockets stay open, so no
    guest is refused. `uninstall` takes it off again.

    Under systemd the sockets set the addresses, not [serve] in the configuration. --listen writes drop-ins for the
    git and HTTP sockets, which replace those of an earlier --listen, and keeps loopback. New addresses take effect when
    the sockets are opened anew, which --now does. --listen 127.0.0.1 goes back to loopback alone.

    \b
    Examples:
      sudo ./gitmirror.pyz install --now
      sudo ./gitmirror.pyz install --now --listen 172.16.0.1
      ./gitmirror.pyz install --root /tmp/look
    """
    from appliance.core.ops.install import plan_install, running_program

    plan = plan_install(root, running_program(sys.argv[0]), start=now, listen=listen)
    for step in plan.steps:
        step.apply()
        print_line(step.text)
    print_line("next:")
    for command in plan.next_commands:
        print_line(f"  {command}")
