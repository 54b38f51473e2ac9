#!/usr/bin/env python3
"""Writes the generated parts of docs/commands.md and docs/settings.md: what the code says of every command and setting.

    .venv/bin/python scripts/reference_docs.py            # rewrites both pages
    .venv/bin/python scripts/reference_docs.py --check    # exits with 1 if one is not what this would write

The text outside the marked parts is written by hand and stays as it is.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from appliance.cli.main import cli  # noqa: E402
from appliance.core.config.credentials import CredentialConfig  # noqa: E402
from appliance.core.config.repositories import AllowConfig, RepoConfig  # noqa: E402
from appliance.core.config.settings import SECTIONS  # noqa: E402
from appliance.core.config.shown import to_toml  # noqa: E402

PROGRAM = "gitmirror.pyz"
WIDTH = 110
LISTS: dict[str, type[Any]] = {"repos": RepoConfig, "allow": AllowConfig, "credentials": CredentialConfig}


def contexts(above: click.Context) -> Iterator[click.Context]:
    """Every command below that of `above`, a group before its own commands, in the order of the alphabet."""
    if isinstance(above.command, click.Group):
        for name, command in sorted(above.command.commands.items()):
            if not command.hidden:
                context = click.Context(command, info_name=name, parent=above)
                yield context
                yield from contexts(context)


def program() -> click.Context:
    """The program itself, under the name that the documents use."""
    return click.Context(cli, info_name=PROGRAM)


def title(context: click.Context) -> str:
    """The words of a command: `session show`."""
    return context.command_path.removeprefix(PROGRAM).strip()


def commands() -> Iterator[str]:
    """The program's own options, a table of all commands, then each with its usage, help, options and examples."""
    listed = [context for context in contexts(program()) if takes_a_call(context.command)]
    yield "## Options before the command"
    yield from options(program())
    yield ""
    yield "## All commands"
    yield ""
    yield "| command | what it does |"
    yield "|---|---|"
    for context in listed:
        name = title(context)
        yield f"| [`{name}`](#{name.replace(' ', '-')}) | {cell(context.command.get_short_help_str(limit=400))} |"
    for context in contexts(program()):
        yield ""
        yield from command(context)


def takes_a_call(given: click.Command) -> bool:
    """Whether the command does something by itself: a group such as `session` only has commands."""
    return not isinstance(given, click.Group) or given.invoke_without_command


def command(context: click.Context) -> Iterator[str]:
    """The section of one command."""
    yield f"{'#' * (2 + title(context).count(' '))} {title(context)}"
    yield ""
    yield from fenced([" ".join([context.command_path, *context.command.collect_usage_pieces(context)])])
    yield from told(context.command.help or "")
    yield from options(context)


def options(context: click.Context) -> Iterator[str]:
    """The table of a command's options."""
    records = [each.get_help_record(context) for each in context.command.params if isinstance(each, click.Option)]
    if rows := [record for record in records if record]:
        yield ""
        yield "| option | meaning |"
        yield "|---|---|"
        for names, meaning in rows:
            yield f"| `{cell(names.replace('INTEGER RANGE', 'N'))}` | {cell(escaped(bounds_in_words(meaning)))} |"


def bounds_in_words(meaning: str) -> str:
    """The meaning of an option with the bounds of a number as a person writes them: click has `x>=1` and `1<=x<=9`."""
    return re.sub(r"\bx>=(\d+)", r"\1 or more", re.sub(r"(\d+)<=x<=(\d+)", r"\1 to \2", meaning))


def told(text: str) -> Iterator[str]:
    """A help text as Markdown: paragraphs are filled, and those that click leaves as they are stand in a fence."""
    for paragraph in inspect.cleandoc(text).partition("\f")[0].split("\n\n"):
        lines = paragraph.strip("\n").split("\n")
        if lines[0] != "\b":
            yield ""
            yield from filled(escaped(" ".join(lines)))
        elif re.fullmatch(r"Examples?:", lines[1]):
            yield ""
            yield from fenced(textwrap.dedent("\n".join(lines[2:])).split("\n"), "console")
        else:
            yield ""
            yield from fenced(lines[1:])


def settings() -> Iterator[str]:
    """A section for each table of the configuration file, with its keys."""
    for first, (name, kind) in enumerate({**SECTIONS, **LISTS}.items()):
        heading = f"[[{name}]]" if name in LISTS else f"[{name}]"
        purpose = re.sub(r"^(?:One )?`\[+\w+\]+`(?: entry)?: ", "", (kind.__doc__ or "").partition("\n")[0])
        if first:
            yield ""
        yield f"## {heading}"
        yield ""
        yield from filled(escaped(purpose[0].upper() + purpose[1:]))
        yield ""
        yield "| setting | default | meaning |"
        yield "|---|---|---|"
        for each in fields(kind):
            default = f"`{to_toml(each.metadata['default'])}`" if each.metadata["default"] != "" else ""
            yield f"| `{each.name}` | {default} | {cell(escaped(each.metadata['help'].removesuffix('.')))} |"


def escaped(text: str) -> str:
    """Text in which nothing but `code` means something to Markdown."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([<*])", r"\\\1", part) for part in parts)


def cell(text: str) -> str:
    """Text in one cell of a table."""
    return re.sub(r"\s+", " ", text).replace("|", "\\|")


def filled(text: str) -> list[str]:
    """Text in lines, broken at spaces alone."""
    return textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def fenced(lines: list[str], kind: str = "") -> Iterator[str]:
    """Lines that stand as they are."""
    yield f"```{kind}"
    yield from lines
    yield "```"


PAGES = {"commands": commands, "settings": settings}
"""Each page with what makes the part between its marks."""


def render(name: str, page: str) -> str:
    """The page with its generated part made anew. Raises ValueError if it lacks the marks."""
    pattern = re.compile(rf"(<!-- {name}: .*? -->\n).*?(\n<!-- end of {name} -->)", re.DOTALL)
    text = "\n".join(PAGES[name]())
    made, count = pattern.subn(lambda match: f"{match[1]}\n{text}\n{match[2]}", page)
    if count != 1:
        raise ValueError(f"docs/{name}.md has {count} parts between the marks of {name}, not one")
    return made


def main() -> int:
    """Rewrites the pages, or says which is not as it should be."""
    parser = argparse.ArgumentParser(description="Writes the generated parts of docs/commands.md and docs/settings.md.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a page would change")
    arguments = parser.parse_args()
    wrong = False
    for name in PAGES:
        path = ROOT / "docs" / f"{name}.md"
        page = path.read_text()
        made = render(name, page)
        if arguments.check and made != page:
            print(f"docs/{name}.md is not what the code says: run scripts/reference_docs.py", file=sys.stderr)
            wrong = True
        elif made != page:
            path.write_text(made)
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
