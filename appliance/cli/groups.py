"""Groups of commands: the one of all commands, and those whose first argument is a value unless it names a command."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import click

from appliance.cli.output import ReportingGroup

MOST = 200
"""Characters of a first sentence, which is wrapped and not cut."""


class SectionedGroup(ReportingGroup):
    """The group of all commands: its help lists them in sections, and its errors say what was probably meant."""

    def __init__(self, *args: Any, **extra: Any) -> None:
        super().__init__(*args, **extra)
        self.sections: dict[str, tuple[str, ...]] = {}

    def add_section(self, title: str, *commands: click.Command) -> None:
        """Adds commands below one heading of the help."""
        for command in commands:
            self.add_command(command)
        self.sections[title] = tuple(command.name or "" for command in commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the sections in the order in which they were added, with one column for all of them."""
        width = max(len(name) for name in self.commands)
        for title, names in self.sections.items():
            rows = [(name.ljust(width), self.commands[name].get_short_help_str(MOST)) for name in names]
            with formatter.section(title):
                formatter.write_dl(rows)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Finds the command. For the name of a subcommand alone, the error names its group too."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            groups = [name for name, each in self.commands.items() if isinstance(each, click.Group)]
            whole = [f"'{name} {args[0]}'" for name in groups if args[0] in _subcommands(self.commands[name])]
            if whole:
                raise click.UsageError(
                    f"No such command {args[0]!r}. Did you mean {' or '.join(whole)}?", ctx
                ) from error
            raise

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """Parses the options before the command. For one that belongs behind it, the error says so."""
        try:
            return super().make_context(*args, **extra)
        except click.NoSuchOption as error:
            if any(error.option_name in param.opts for each in self.commands.values() for param in each.params):
                said = f"{error.message} It stands behind the command: {error.ctx and error.ctx.info_name} COMMAND"
                raise click.UsageError(f"{said} {error.option_name}", error.ctx) from error
            raise

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command. For an option behind it that belongs before it, the error says so."""
        try:
            return super().invoke(ctx)
        except click.NoSuchOption as error:
            own = {name: param for param in self.params for name in param.opts if name.startswith("--")}
            of_command = [name for param in error.ctx.command.params for name in param.opts] if error.ctx else []
            near = get_close_matches(error.option_name, [*of_command, *own], 1)
            if near and near[0] in own:
                param = own[near[0]]
                value = "" if isinstance(param, click.Option) and param.is_flag else f" {param.make_metavar(ctx)}"
                meant = "It stands" if near[0] == error.option_name else f"Did you mean {near[0]!r}? It stands"
                said = f"{error.message} {meant} before the command: {ctx.command_path} {near[0]}{value} COMMAND"
                raise click.UsageError(said, error.ctx) from error
            raise


def _subcommands(command: click.Command) -> Mapping[str, click.Command]:
    return command.commands if isinstance(command, click.Group) else {}


class ValueOrCommand(click.Group):
    """`backup DIR` or `backup verify`: the first argument is a value unless it is a command."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parses the arguments after the group's name."""
        if args and args[0] in self.commands:
            return super().parse_args(ctx, ["", *args])
        # Without a command, options may stand after the value.
        ctx.allow_interspersed_args = True
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Finds the command. What follows a value is none, so the value was probably meant as one."""
        if args[0] in self.commands or ctx.resilient_parsing:
            return super().resolve_command(ctx, args)
        value = next((each for each in ctx.params.values() if isinstance(each, str)), "")
        near = get_close_matches(value, self.commands, 1)
        advice = f" Did you mean '{ctx.info_name} {near[0]}'?" if near else ""
        raise click.UsageError(f"Got unexpected extra argument ({args[0]}).{advice}", ctx)


class OwnArgument(click.Argument):
    """A group's argument that is not shown in the help of the group's commands."""

    def get_usage_pieces(self, ctx: click.Context) -> list[str]:
        """The parts of the usage line."""
        return super().get_usage_pieces(ctx) if isinstance(ctx.command, click.Group) else []
