"""`tui`: the live view."""

from __future__ import annotations

import gc
import shlex
import sys
from dataclasses import replace

import click

from appliance.cli.context import Options, pass_options
from appliance.core.errors import GitmirrorError


@click.command()
@pass_options
def tui(options: Options) -> None:
    """Watch repositories, sessions and guests live, and act on them, in the terminal.

    Works without a running serve too, read-only, and joins it when it starts. `?` shows every key.

    \b
    Example:
      gitmirror.pyz tui
    """
    # Textual draws on stderr.
    if not all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)):
        raise GitmirrorError("the live view needs a terminal", hint="`status`, `sessions` and `activity` print")
    from appliance.core.node.queries import NodeQueries
    from appliance.tui.app import Tui

    # Reads in threads give the screen its turn sooner, and the collector passes over what the imports made: beside
    # 500 events a second and 10,000 sessions the slowest of 60 keys waited for 150 ms, and so for 60.
    sys.setswitchinterval(0.001)
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    words = ["gitmirror.pyz"]
    for name, value in (("--state", options.state), ("--config", options.config)):
        words += [name, value] if value else []
    Tui(NodeQueries(replace(options.node(), create=False)), command=shlex.join(words)).run()
