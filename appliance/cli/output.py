"""Printing: JSON documents, tables for people, and errors with their hints.

Every command prints through here, because what guests and upstreams wrote has to pass `escape` on its way out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from appliance.core.errors import GitmirrorError
from appliance.core.text import escape


def print_json(document: Any) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(document, indent=2, ensure_ascii=True))


def print_json_line(document: Any) -> None:
    """One document of several, on a line of its own."""
    click.echo(json.dumps(document, ensure_ascii=True))


def print_line(text: str) -> None:
    """One line on stdout for a person."""
    click.echo(escape(text))


def print_cells(cells: Sequence[Any]) -> None:
    """A row that is printed before the next one is known, so in no columns."""
    print_line("  ".join("" if cell is None else str(cell) for cell in cells))


def print_table(headers: Sequence[str], rows: Sequence[Sequence[Any]], *, right: Sequence[str] = ()) -> None:
    """Columns as wide as they need; those named in `right` are aligned right."""
    texts = [["" if cell is None else escape(str(cell)) for cell in row] for row in rows]
    widths = [max(len(line[column]) for line in [list(headers), *texts]) for column in range(len(headers))]
    for line in [list(headers), *texts]:
        cells = [
            cell.rjust(width) if header in right else cell.ljust(width)
            for header, cell, width in zip(headers, line, widths, strict=True)
        ]
        click.echo("  ".join(cells).rstrip())


def say(text: str) -> None:
    """A message for a person: on stderr, so that stdout stays what was asked for."""
    click.echo(escape(text), err=True)


def ask(question: str) -> bool:
    """A question that is answered with yes or no, on stderr; no when nobody answers."""
    return click.confirm(escape(question), default=False, err=True)


def say_error(error: GitmirrorError) -> None:
    """What happened, and what to do about it; in colour on a terminal, unless NO_COLOR is set (no-color.org)."""
    color = False if os.environ.get("NO_COLOR") else None
    click.echo(f"{click.style('error:', fg='red')} {escape(error.message)}", err=True, color=color)
    if error.hint:
        click.echo(f"{click.style('hint:', fg='cyan')} {escape(error.hint)}", err=True, color=color)


@contextmanager
def _escaped_complaints() -> Iterator[None]:
    """click quotes what it was given: a shell may have completed it from a name that a guest chose."""
    try:
        yield
    except click.ClickException as error:
        # Final to type checkers. Some are a whole help page, with its line breaks.
        vars(error)["message"] = escape(error.message, keep="\n")
        raise


class ReportingGroup(click.Group):
    """Turns a GitmirrorError of any command into its two lines and its exit code, in one place."""

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """Reads the options that stand before the command."""
        with _escaped_complaints():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command."""
        try:
            with _escaped_complaints():
                return super().invoke(ctx)
        except GitmirrorError as error:
            say_error(error)
            ctx.exit(error.exit_code)
