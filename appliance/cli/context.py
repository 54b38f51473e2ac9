"""The options that stand before the command, resolved only when a command needs them, and types of option values."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from appliance.core.errors import GitmirrorError, UsageError

if TYPE_CHECKING:
    from appliance.core.config.settings import Config
    from appliance.core.node.node import Node


@dataclass(frozen=True)
class Options:
    """`--state` and `--config` as given."""

    state: str | None
    config: str | None

    def load_config(self) -> Config:
        """Reads the configuration. Raises UsageError."""
        from appliance.core.config.settings import find_config, load_config

        return load_config(find_config(self.config, os.environ))

    def node(self) -> Node:
        """Opens the state directory with its configuration; a process run as root first becomes the owner of it."""
        from appliance.core.config.settings import find_state
        from appliance.core.layout import Layout
        from appliance.core.node.node import Node
        from appliance.core.process.owner import become_owner_of

        state = find_state(self.state, os.environ)
        become_owner_of(state)
        return Node(Layout(state), self.load_config())

    def mend(self, error: GitmirrorError) -> str:
        """Returns what an operator can do about an error of a command."""
        from appliance.core.config.settings import find_state
        from appliance.core.store.remedies import remedy

        try:
            return remedy(error, find_state(self.state, os.environ), self.load_config().backup.to)
        except UsageError:
            return error.hint


pass_options = click.make_pass_decorator(Options)


class Duration(click.ParamType[float]):
    """A duration of at least one second, and at most `longest` if that is given: `30s`, `5m`, `2h`, `7d`."""

    name = "duration"

    def __init__(self, longest: str | None = None) -> None:
        self._longest = longest

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
        if self._longest is not None and seconds > parse_duration(self._longest):
            self.fail(f"{value!r} is more than {self._longest}", param, ctx)
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
