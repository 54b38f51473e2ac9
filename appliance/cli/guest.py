"""`guest-kit`."""

from __future__ import annotations

import click

from appliance.cli.context import Options, pass_options
from appliance.cli.output import say


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
    from appliance.core.ops.egress import unreachable

    node = options.node()
    click.echo(node.current().guest_kit(), nl=False)
    for warning in unreachable(node):
        say(f"warning: {warning}")
