#!/usr/bin/env python3
"""Writes docs/gitmirror.1, the man page, from the commands and their help.

    .venv/bin/python scripts/man_page.py            # rewrites the page
    .venv/bin/python scripts/man_page.py --check    # exits with 1 if the page is not what this would write

The wheel and gitmirror.pyz carry it, and `install` puts it into place. tests/docs checks that it is up to date.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from appliance.cli.groups import SectionedGroup  # noqa: E402
from appliance.cli.main import cli  # noqa: E402

PAGE = ROOT / "docs" / "gitmirror.1"
PROGRAM = "gitmirror.pyz"
ENVIRONMENT = {
    "GITMIRROR_STATE": "The state directory, if --state does not name it.",
    "GITMIRROR_CONFIG": "The configuration file, if --config does not name it.",
    "GITMIRROR_PAGER, PAGER": "The pager for output that is longer than the screen; empty for none. Default: less.",
    "NO_COLOR": "If set and not empty, output has no colours unless --color says always.",
}
FILES = {
    "/etc/gitmirror/gitmirror.toml": "The configuration: every setting with its default.",
    "/var/lib/gitmirror": "The state directory: registry, audit log, mirrors, workspaces and disks.",
    "/run/gitmirror/control.sock": "The control socket, for root and the group gitmirror.",
}
EXIT_STATUS = {
    "0": "Success.",
    "1": "Failure.",
    "2": "Wrong usage or configuration, or an unknown repository; nothing was changed.",
    "3": "Something is stale, failing, damaged or broken, or pushes are off.",
    "4": "The command needs serve, and it is not running.",
}


def render() -> str:
    """The whole page."""
    return "\n".join(_page(cli)) + "\n"


def _page(cli: SectionedGroup) -> Iterator[str]:
    yield '.\\" Written by scripts/man_page.py from the help of the commands.'
    yield '.TH GITMIRROR 1 "" "gitmirror" "User Commands"'
    yield ".SH NAME"
    yield f"gitmirror, {PROGRAM} \\- a hot git mirror for agents in microVMs"
    yield ".SH SYNOPSIS"
    yield f".B {PROGRAM}"
    yield "[\\fIOPTIONS\\fR] \\fICOMMAND\\fR [\\fIARGS\\fR]"
    yield ".SH DESCRIPTION"
    yield from _text(cli)
    yield ".SH OPTIONS"
    yield from _options(cli, [PROGRAM])
    for title, names in cli.sections.items():
        yield f".SH {_escaped(title).upper()}"
        for name in names:
            yield from _command(cli.commands[name], [PROGRAM, name])
    for title, entries in (("EXIT STATUS", EXIT_STATUS), ("ENVIRONMENT", ENVIRONMENT), ("FILES", FILES)):
        yield f".SH {title}"
        for name, text in entries.items():
            yield from (".TP", f".B {_escaped(name)}", _escaped(text))
    yield ".SH SEE ALSO"
    yield ".BR git (1),"
    yield ".BR systemctl (1),"
    yield ".BR journalctl (1)"


def _command(command: click.Command, words: list[str]) -> Iterator[str]:
    """A command with its options, then those below it."""
    with click.Context(command, info_name=words[-1]) as ctx:
        usage = " ".join(command.collect_usage_pieces(ctx))
    yield f".SS {_escaped(' '.join(words[1:]))}"
    yield f".B {_escaped(' '.join(words))}"
    yield f"\\fI{_escaped(usage)}\\fR"
    yield ".PP"
    yield from _text(command)
    yield from _options(command, words)
    if isinstance(command, click.Group):
        for name, each in command.commands.items():
            yield from _command(each, [*words, name])


def _text(command: click.Command) -> Iterator[str]:
    """The help: paragraphs, and as they stand those that click does not wrap."""
    for number, paragraph in enumerate(inspect.cleandoc(command.help or "").split("\n\n")):
        lines = paragraph.splitlines()
        if lines[0] == "\b":
            yield from (".PP", ".nf", *map(_escaped, lines[1:]), ".fi")
        else:
            yield from ([".PP"] if number else [])
            yield _escaped(" ".join(lines))


def _options(command: click.Command, words: list[str]) -> Iterator[str]:
    with click.Context(command, info_name=words[-1]) as ctx:
        for param in command.get_params(ctx):
            record = param.get_help_record(ctx)
            if record and record[1] and "--help" not in param.opts:
                names, text = record
                yield from (".TP", f"\\fB{_escaped(names)}\\fR", _escaped(text.replace("\n", " ")))


def _escaped(text: str) -> str:
    """Text as roff means it: nothing is a request, hyphens are those of a shell, and all of it is ASCII."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    text = re.sub(r"[^\x00-\x7f]", lambda found: f"\\[u{ord(found[0]):04X}]", text)
    return f"\\&{text}" if text.startswith((".", "'")) else text


def main() -> int:
    """Rewrites the page, or says whether it is as it should be."""
    parser = argparse.ArgumentParser(description="Writes docs/gitmirror.1 from the commands.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the page would change")
    arguments = parser.parse_args()
    made = render()
    if arguments.check:
        stale = not PAGE.exists() or PAGE.read_text() != made
        if stale:
            print("docs/gitmirror.1 is not what the commands say: run scripts/man_page.py", file=sys.stderr)
        return int(stale)
    PAGE.write_text(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
