"""`tui`: the live view."""

from __future__ import annotations

import gc
import signal
import sys
from typing import TYPE_CHECKING

import click

from appliance.cli.context import Options, pass_options
from appliance.core.errors import GitmirrorError

if TYPE_CHECKING:
    from appliance.core.node.node import Node


@click.command()
@pass_options
def tui(options: Options) -> None:
    """Open the live view in this terminal.

    It shows repositories, sessions and guests live, and lets you act on them. Without a running serve it is read-only,
    and it connects when serve starts. `?` shows every key.

    \b
    Example:
      gitmirror.pyz tui
    """
    # Textual draws on stderr.
    if not all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)):
        raise GitmirrorError(
            "the live view needs a terminal", hint="without one, use `status`, `sessions` and `activity`"
        )
    show(options.node(writes=True), options.command)


def show(node: Node, command: str, *, greeting: str = "") -> None:
    """Runs the live view of `node` until the user leaves it, or a signal ends it."""
    import asyncio

    from appliance.core.node.queries import NodeQueries
    from appliance.tui.app import Tui

    # With a short switch interval, threads that read yield to the screen sooner; after `freeze` the garbage collector
    # skips what the imports made. At 500 events a second and with 10,000 sessions, the slowest of 60 key presses took
    # 150 ms without these settings and 60 ms with them.
    sys.setswitchinterval(0.001)
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)

    async def run() -> None:
        view = Tui(NodeQueries(node), command=command, greeting=greeting)
        # Otherwise the terminal would be left as the view has set it.
        for number in (signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, view.exit)
        await view.run_async()

    asyncio.run(run())
