"""`demo`: everything at work, with no network and no setting."""

from __future__ import annotations

import sys

import click

from appliance.cli.context import Options
from appliance.cli.output import print_line, say
from appliance.core.errors import GitmirrorError

SEED = 7
GREETING = "A demo: all of this is at work, and made up.\n1 to 5 go round, ? shows every key, q ends it."


@click.command()
@click.option("--serve-only", is_flag=True, help="Print the lines to try git and curl with, and run until Ctrl-C.")
def demo(serve_only: bool) -> None:
    """Show everything at work, with no network and no setting.

    Runs a node in a temporary directory, on free ports of the loopback, beside made-up upstreams that move and fail,
    guests that hydrate, and agents that record. Opens the live view on it, and removes everything when you leave with
    q or Ctrl-C. --state and --config have no meaning here.

    \b
    Example:
      gitmirror.pyz demo
      gitmirror.pyz demo --serve-only
    """
    if serve_only:
        _serve()
    else:
        _show()


def _serve() -> None:
    from appliance.demo.program import shown_command
    from appliance.demo.supervision import Announced, run_here

    def announce(demo: Announced) -> None:
        command = shown_command(demo.place)
        for line in (
            f"The demo runs in {demo.place.root} until Ctrl-C. In another terminal:",
            "",
            "  # how it is, and the live view",
            f"  {command} status",
            f"  {command} tui",
            "  # a clone; then the same as one tar",
            f"  git clone {demo.git}/acme/checkout",
            f"  mkdir workspace && curl -fsS {demo.http}/acme/checkout/workspace.tar | tar -xf - -C workspace",
            "  # a push: a session is recorded, and everything else is refused",
            f"  git -C checkout push {demo.git}/acme/checkout HEAD:refs/agents/my-session",
            f"  git -C checkout push {demo.git}/acme/checkout HEAD:refs/heads/my-branch",
        ):
            print_line(line)

    run_here(SEED, announce)


def _show() -> None:
    if not all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)):
        raise GitmirrorError(
            "the demo opens the live view, which needs a terminal", hint="without one, use --serve-only"
        )
    from appliance.demo.supervision import run_beside

    say("starting the demo …")
    with run_beside(SEED) as ready:
        # While the stage is set. The view takes half a second to import.
        import appliance.tui.app  # noqa: F401
        from appliance.cli.tui import show
        from appliance.core.config.settings import load_config
        from appliance.core.node.node import Node

        place = ready().place
        node = Node(place.layout, load_config(place.config), create=False)
        show(node, Options(str(place.layout.state), str(place.config)).command, greeting=GREETING)
    say("The demo is over, and nothing of it is left. For repositories of your own: gitmirror.pyz serve --help")
