"""Groups of commands whose first argument is a value unless it names a command."""

from __future__ import annotations

import click


class ValueOrCommand(click.Group):
    """`backup DIR` or `backup verify`: the first argument is a value unless it is a command."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parses the arguments after the group's name."""
        if args and args[0] in self.commands:
            return super().parse_args(ctx, ["", *args])
        # Without a command, options may stand after the value.
        ctx.allow_interspersed_args = True
        return super().parse_args(ctx, args)


class OwnArgument(click.Argument):
    """A group's argument that is not shown in the help of the group's commands."""

    def get_usage_pieces(self, ctx: click.Context) -> list[str]:
        """The parts of the usage line."""
        return super().get_usage_pieces(ctx) if isinstance(ctx.command, click.Group) else []
