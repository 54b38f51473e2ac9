"""`guest-kit`."""

from __future__ import annotations

import re

import click

from appliance.cli.context import Options, pass_options
from appliance.cli.output import say

_EVERYWHERE = re.compile(r"\b(git|http)://(0\.0\.0\.0|\[::\]):([0-9]+)")


@click.command("guest-kit")
@pass_options
def guest_kit(options: Options) -> None:
    """Print the guest kit for this mirror.

    The kit is a POSIX sh file that guests source or run.

    \b
    Examples:
      gitmirror.pyz guest-kit > guest.sh
      . ./guest.sh && gitmirror_hydrate jomcgi/homelab /workspace
    """
    kit = options.node().current().guest_kit()
    click.echo(kit, nl=False)
    if found := _EVERYWHERE.search(kit):
        say(f"warning: guests cannot reach {found[0]}, which means all addresses of this node")
        say(f'Set the URL that they use: [serve] public_{found[1]} = "{found[1]}://ADDRESS:{found[3]}"')
