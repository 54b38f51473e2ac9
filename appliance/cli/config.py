"""The configuration: `config check` and `config show`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.context import Options, json_option, pass_options
from appliance.cli.output import print_json, print_line, say

if TYPE_CHECKING:
    from appliance.core.config.shown import ShownTable

WIDE = 44
"""Columns of a setting before the comment that says where it comes from."""


@click.group("config")
def config_group() -> None:
    """Check the configuration file, and show what is in force.

    \b
    Examples:
      gitmirror.pyz config check
      gitmirror.pyz --config new.toml config check && sudo cp new.toml /etc/gitmirror/gitmirror.toml
      gitmirror.pyz config show
    """


@config_group.command()
@json_option
@pass_options
def check(options: Options, as_json: bool) -> None:
    """Check the configuration file, and change nothing.

    Exits with code 2 when serve would refuse the file, and says which key is wrong and what is allowed. Warnings, such
    as a limit that makes healthy repositories look stale, leave the code at 0. `doctor` checks whether the files that
    the settings name can be read.

    \b
    Example:
      gitmirror.pyz config check
    """
    from appliance.core.access.allowed import unusable
    from appliance.core.node.state_dir import wanted_of_config

    config = options.load_config()
    listed = wanted_of_config(config)
    warnings = [*config.warnings(), *unusable(config.allow, allow_local=config.refresh.allow_local)]
    if as_json:
        print_json({"file": str(config.path) if config.path else None, "repos": len(listed), "warnings": warnings})
        return
    for warning in warnings:
        say(f"warning: {warning}")
    if config.path is None:
        say("there is no configuration file, so every setting has its default")
    else:
        say(f"{config.path} is valid")


@config_group.command()
@json_option
@pass_options
def show(options: Options, as_json: bool) -> None:
    """Show every setting in force, and where each comes from.

    Prints TOML, which is a valid configuration file itself. A running serve uses what it read at its start or last
    reload, and sockets from systemd take precedence over the addresses in [serve].

    \b
    Examples:
      gitmirror.pyz config show
      gitmirror.pyz config show --json | jq '.sections.refresh.interval.value'
    """
    from appliance.core.config.settings import find_state
    from appliance.core.config.shown import shown

    config, state = options.load_config(), find_state(options.state, os.environ)
    tables = shown(config)
    if as_json:
        print_json(_document(tables) | {"file": str(config.path) if config.path else None, "state": str(state)})
        return
    print_line(f"# configuration file: {config.path or 'none'}")
    print_line(f"# state directory: {state} ({_origin(options)})")
    for table in tables:
        _print_table(table)


def _origin(options: Options) -> str:
    if options.state:
        return "--state"
    return next((f"${name}" for name in ("GITMIRROR_STATE", "STATE_DIRECTORY") if os.environ.get(name)), "default")


def _document(tables: list[ShownTable]) -> dict[str, Any]:
    sections: dict[str, Any] = {}
    lists: dict[str, list[Any]] = {"repos": [], "allow": [], "credentials": []}
    for table in tables:
        values = {each.key: {"value": each.value, "source": each.source} for each in table.values}
        if table.is_listed:
            lists[table.name].append(values)
        else:
            sections[table.name] = values
    return {"sections": sections, **lists}


def _print_table(table: ShownTable) -> None:
    from appliance.core.config.shown import FILE, to_toml

    print_line("")
    print_line(f"[[{table.name}]]" if table.is_listed else f"[{table.name}]")
    for each in table.values:
        line = f"{each.key} = {to_toml(each.value)}"
        if not table.is_listed:
            print_line(f"{line:<{WIDE}}  # {'from the file' if each.source == FILE else 'default'}")
        elif each.source == FILE:
            print_line(line)
