"""Printing: JSON documents, tables for people, and errors with their hints."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

import click

from appliance.core.errors import GitmirrorError


def print_json(document: Any) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(document, indent=2, ensure_ascii=True))


def print_table(headers: Sequence[str], rows: Sequence[Sequence[Any]], *, right: Sequence[str] = ()) -> None:
    """Columns as wide as they need; those named in `right` are aligned right."""
    texts = [["" if cell is None else str(cell) for cell in row] for row in rows]
    widths = [max(len(line[column]) for line in [list(headers), *texts]) for column in range(len(headers))]
    for line in [list(headers), *texts]:
        cells = [
            cell.rjust(width) if header in right else cell.ljust(width)
            for header, cell, width in zip(headers, line, widths, strict=True)
        ]
        click.echo("  ".join(cells).rstrip())


def say(text: str) -> None:
    """A message for a person: on stderr, so that stdout stays what was asked for."""
    click.echo(text, err=True)


def say_error(error: GitmirrorError) -> None:
    """What happened, and what to do about it; in colour on a terminal, unless NO_COLOR is set (no-color.org)."""
    color = False if os.environ.get("NO_COLOR") else None
    click.echo(f"{click.style('error:', fg='red')} {error.message}", err=True, color=color)
    if error.hint:
        click.echo(f"{click.style('hint:', fg='cyan')} {error.hint}", err=True, color=color)


class ReportingGroup(click.Group):
    """Turns a GitmirrorError of any command into its two lines and its exit code, in one place."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command."""
        try:
            return super().invoke(ctx)
        except GitmirrorError as error:
            say_error(error)
            ctx.exit(error.exit_code)
