"""Commands whose output is long: on a terminal it goes through a pager."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import click

UNPAGED = ("as_json", "follow", "raw")
"""Parameters of commands whose output is for a program, or has no end."""


def page(command: click.Command) -> None:
    """Has a command show its output in a pager, where there is somebody to read it."""
    assert command.callback is not None
    run: Callable[..., Any] = command.callback

    @wraps(run)
    def shown(*args: Any, **parameters: Any) -> Any:
        pager = _pager(click.get_current_context())
        if not pager:
            return run(*args, **parameters)
        from appliance.core.process.pager import paged

        with paged(pager):
            return run(*args, **parameters)

    command.callback = shown


def wants_pager(ctx: click.Context) -> bool:
    """Whether output that is long goes through a pager: on a terminal, without --no-pager."""
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    return is_terminal and not ctx.find_root().params.get("no_pager")


def _pager(ctx: click.Context) -> str:
    if any(ctx.params.get(name) for name in UNPAGED) or not wants_pager(ctx):
        return ""
    from appliance.core.process.pager import pager_command

    return pager_command(os.environ)
