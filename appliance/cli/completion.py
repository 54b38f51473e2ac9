"""`completion`."""

from __future__ import annotations

import sys

import click

from appliance.cli.output import print_text
from appliance.core.ops.shell_completion import SHELLS


@click.command()
@click.argument("shell", metavar="SHELL", type=click.Choice(SHELLS))
@click.option("--name", "names", metavar="N", multiple=True, help="Complete for this alias too; may be repeated.")
def completion(shell: str, names: tuple[str, ...]) -> None:
    """Print the completion script for bash, zsh or fish.

    It completes commands, options, and the names of repositories, sessions and guests, for gitmirror.pyz at any path,
    and for the name under which this command was run. `install` puts the scripts into place for all users. For
    yourself, add a line to your shell's startup file, as below: ~/.bashrc, ~/.zshrc or ~/.config/fish/config.fish.

    \b
    Examples:
      source <(gitmirror.pyz completion bash)
      source <(gitmirror.pyz completion zsh)
      gitmirror.pyz completion fish | source
      alias gm=/opt/gitmirror.pyz; source <(gm completion bash --name gm)
    """
    from appliance.core.ops.shell_completion import completion_script, program_of

    print_text(completion_script(shell, program_of(sys.argv[0]), names))
