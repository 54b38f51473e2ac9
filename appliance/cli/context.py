"""The options that stand before the command, resolved only when a command needs them, and types of option values."""

from __future__ import annotations

import os
import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from appliance.core.errors import GitmirrorError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from appliance.core.config.settings import Config
    from appliance.core.node.node import Node


NOTHING_THERE = "gitmirror.nothing_there"
"""The key of `Context.meta` for what is said once a command has read a node that is not there."""


@dataclass(frozen=True)
class Options:
    """`--state` and `--config` as given."""

    state: str | None
    config: str | None

    @property
    def command(self) -> str:
        """The beginning of a command for a shell that means the same node: the program and these options."""
        words = ["gitmirror.pyz"]
        for name, value in (("--state", self.state), ("--config", self.config)):
            words += [name, value] if value else []
        return shlex.join(words)

    def load_config(self) -> Config:
        """Reads the configuration. Raises UsageError."""
        from appliance.core.config.settings import find_config, load_config

        return load_config(find_config(self.config, os.environ))

    def node(self, *, create: bool = False, anyone: bool = False, writes: Path | bool = False) -> Node:
        """Opens the state directory with its configuration; a process run as root first becomes the owner of it.

        With `create`, a command that changes the node may make its state directory; reading makes nothing. Raises
        Forbidden for a user who may not read the state directory, unless `anyone`. A command that `writes` outside the
        state directory, to that path or to what the user names later, does so as whoever called.
        """
        from appliance.core.config.settings import find_state
        from appliance.core.layout import Layout
        from appliance.core.node.callers_files import CallersFiles
        from appliance.core.node.node import Node
        from appliance.core.process.owner import become_owner_of, becomes_another, refuse_strangers

        layout = Layout(find_state(self.state, os.environ))
        files = CallersFiles()
        if writes and becomes_another(layout.state):
            files = CallersFiles.left_behind(None if writes is True else writes)
        become_owner_of(layout.state)
        if not writes:
            # As `serve`: what is made, a backup too, is for its owner and the group alone.
            os.umask(0o027)
        if not anyone:
            refuse_strangers(layout)
            if not create and not layout.database.exists():
                click.get_current_context().meta[NOTHING_THERE] = layout
        return Node(layout, self.load_config(), create, files)

    def mend(self, error: GitmirrorError) -> str:
        """Returns what an operator can do about an error of a command."""
        from appliance.core.config.settings import find_state
        from appliance.core.store.remedies import remedy

        try:
            return remedy(error, find_state(self.state, os.environ), self.load_config().backup.to)
        except UsageError:
            return error.hint


def nothing_there(state: Path) -> str:
    """Says that there was nothing to read: it is rather the wrong directory than a new node."""
    what = f"no serve ever ran on {state}" if state.exists() else f"there is no state directory {state}"
    return f"{what}: serve makes it at its first start; if the state is elsewhere, name its directory with --state DIR"


pass_options = click.make_pass_decorator(Options)


class Duration(click.ParamType[float]):
    """A duration of at least one second: `30s`, `5m`, `2h`, `7d`."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Returns seconds."""
        from appliance.core.units import parse_duration

        if isinstance(value, float):
            return value
        try:
            seconds = parse_duration(value)
        except ValueError as error:
            self.fail(f"{value!r} is not {error}", param, ctx)
        if seconds < 1:
            self.fail(f"{value!r} is less than 1s", param, ctx)
        return seconds


class Moment(click.ParamType[str]):
    """`2h` (two hours ago) or a time, `2026-01-31` or `2026-01-31T12:00:00Z`; UTC unless the time has an offset."""

    name = "when"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Returns RFC 3339 in UTC, the form that the database stores."""
        from appliance.core.units import parse_moment

        try:
            return parse_moment(value, time.time())
        except ValueError as error:
            self.fail(f"{value!r} is not {error}", param, ctx)


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
