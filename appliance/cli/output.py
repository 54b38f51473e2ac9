"""Printing: JSON documents, tables for people, and errors with their hints.

Every command prints through this module, because text from guests and upstreams must be escaped before it is shown.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from appliance.cli.context import NOTHING_THERE, Options, nothing_there
from appliance.core.errors import GitmirrorError
from appliance.core.text import escape

if TYPE_CHECKING:
    from appliance.core.node.callers_files import CallersFiles


def print_json(document: Any) -> None:
    """Prints one JSON document on stdout."""
    click.echo(json.dumps(document, indent=2, ensure_ascii=True))


def print_json_line(document: Any) -> None:
    """Prints one of several JSON documents, on a line of its own."""
    click.echo(json.dumps(document, ensure_ascii=True))


def print_line(text: str) -> None:
    """Prints one line for a person on stdout."""
    click.echo(escape(text))


def print_text(text: str) -> None:
    """Prints a text of several lines, which ends with a line break, on stdout."""
    click.echo(escape(text, keep="\n\t"), nl=False)


def print_cells(cells: Sequence[Any]) -> None:
    """Prints one row without aligned columns, because the rows after it are not known yet."""
    print_line("  ".join("" if cell is None else str(cell) for cell in cells))


def print_table(headers: Sequence[str], rows: Sequence[Sequence[Any]], *, right: Sequence[str] = ()) -> None:
    """Prints a table whose columns are as wide as their content; those named in `right` are aligned right."""
    texts = [["" if cell is None else escape(str(cell)) for cell in row] for row in rows]
    widths = [max(len(line[column]) for line in [list(headers), *texts]) for column in range(len(headers))]
    for line in [list(headers), *texts]:
        cells = [
            cell.rjust(width) if header in right else cell.ljust(width)
            for header, cell, width in zip(headers, line, widths, strict=True)
        ]
        click.echo("  ".join(cells).rstrip())


def say(text: str) -> None:
    """Prints a message for a person on stderr, so that stdout carries only the result."""
    click.echo(escape(text), err=True)


def say_what_is_local(repos: Sequence[Mapping[str, Any]]) -> None:
    """Says of a node in a fleet which of its repositories the fleet does not share."""
    own = [repo for repo in repos if repo["source"] != "cli"]
    if own:
        count = "1 repository" if len(own) == 1 else f"{len(own)} repositories"
        say(f"{count} of the source config or allowed: this node's own, not shared with the fleet")


def hush(package: str) -> None:
    """Keeps what a package logs off stderr, where Python writes warnings that nobody takes: the command says it."""
    import logging

    logging.getLogger(package).addHandler(logging.NullHandler())


def ask(question: str) -> bool:
    """Asks a yes-or-no question on stderr; the default answer is no."""
    return click.confirm(escape(question), default=False, err=True)


def choose_colour(ctx: click.Context, choice: str) -> None:
    """Sets for all output whether it has colours: `always`, `never`, or `auto`, which looks at each stream.

    `auto` is `never` on a terminal that has no colours, or if NO_COLOR is set (no-color.org).
    """
    if choice == "never":
        # For the live view, which chooses its colours itself.
        os.environ["NO_COLOR"] = "1"
    no_colour = choice == "never" or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    ctx.color = True if choice == "always" else False if no_colour else None


def wants_colour() -> bool:
    """Whether what is written to stdout past this module has colours."""
    ctx = click.get_current_context(silent=True)
    chosen = ctx.color if ctx else None
    return sys.stdout.isatty() if chosen is None else chosen


def say_error(error: GitmirrorError) -> None:
    """Prints the message and the hint."""
    click.echo(f"{click.style('error:', fg='red')} {escape(error.message)}", err=True)
    if error.hint:
        click.echo(f"{click.style('hint:', fg='cyan')} {escape(error.hint)}", err=True)


@contextmanager
def _escaped_complaints() -> Iterator[None]:
    """Escapes click's errors: they quote arguments, which a shell may have completed from a name that a guest chose."""
    try:
        yield
    except click.ClickException as error:
        # `message` is final to type checkers. Some messages are a whole help page, so line breaks stay.
        vars(error)["message"] = escape(error.message, keep="\n")
        raise


class ReportingGroup(click.Group):
    """Prints the GitmirrorError of any command as message and hint, and exits with its code."""

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """Parses the options that stand before the command."""
        with _escaped_complaints():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command."""
        try:
            with _escaped_complaints():
                return super().invoke(ctx)
        except GitmirrorError as error:
            if isinstance(ctx.obj, Options):
                error.hint = ctx.obj.mend(error)
            say_error(error)
            ctx.exit(error.exit_code)
        finally:
            # `restore` has made it by now.
            layout = ctx.meta.get(NOTHING_THERE)
            if layout is not None and not layout.database.exists():
                say(nothing_there(layout.state))


@contextmanager
def binary_output(path: Path | None, files: CallersFiles) -> Iterator[BinaryIO]:
    """Opens a new file, which is gone again if the block fails, or stdout. Raises UsageError and GitmirrorError.

    `files` creates it, as whoever called.
    """
    from appliance.core.errors import GitmirrorError, UsageError

    try:
        # Of stdout a writer of its own, because what Python's cannot write is reported once more at exit.
        with files.create(path) if path else open(sys.stdout.fileno(), "wb", closefd=False) as file:
            try:
                yield file
                file.flush()
            except BaseException:
                if path:
                    files.remove(path)
                raise
    except FileExistsError:
        raise UsageError(f"{path} already exists", hint="name a file that does not exist yet") from None
    except BrokenPipeError:
        raise
    except OSError as error:
        raise GitmirrorError(
            f"{path or 'stdout'} cannot be written: {error.strerror}", hint="choose another place for it"
        ) from error
