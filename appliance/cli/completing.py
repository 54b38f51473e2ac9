"""Answers a shell that completes a word of a command line; see `core.ops.shell_completion` for its side.

The words so far come in a variable of the environment and not as arguments, so that another version of this program,
which knows nothing of it, runs no half-typed command. Whatever goes wrong, nothing is printed.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem, ShellComplete, split_arg_string

from appliance.core.ops.shell_completion import ANSWER, END, WORDS

Names = Callable[[Path, click.Context], list[str]]
PATHS = {"DIR": "dir", "NEW": "dir", "FILE": "file"}
"""Metavars of texts that are paths."""


def answer(cli: click.Group, environ: Mapping[str, str]) -> list[str]:
    """The lines for the shell: `plain`, `file` or `dir`, a tab, the word, a tab, and what it stands for."""
    args, incomplete = _words(environ[ANSWER], environ.get(WORDS, ""))
    for path, command in [("", cli), *_walk(cli)]:
        for param in command.params:
            if isinstance(param.type, click.types.StringParamType):
                param.type = _Known(_names_of(path, param))
    # `--option=value` is completed as a value, so the shell has to have the beginning back.
    option, equals, _ = incomplete.partition("=")
    before = f"{option}=" if equals and option.startswith("-") else ""
    found = ShellComplete(cli, {}, "gitmirror.pyz", ANSWER).get_completions(args, incomplete)
    return [f"{item.type}\t{before}{item.value}\t{item.help or ''}" for item in found if str(item.value).isprintable()]


def _words(shell: str, line: str) -> tuple[list[str], str]:
    """The complete words after the program's name, and the one that is not; fish and zsh have split them."""
    words = split_arg_string(line + END) if shell == "bash" else line.split("\n")
    *complete, last = words
    while complete and "=" in complete[0] and not complete[0].startswith("/"):
        # bash hands over assignments that stand before the program.
        del complete[0]
    return complete[1:], last.removesuffix(END)


class _Known(click.ParamType[str]):
    """A value whose completions the database knows, or that is the path of a file or a directory."""

    name = "text"

    def __init__(self, names: Names | None) -> None:
        self._names = names

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[Any]]:
        """The names that begin like this one, and the commands of a group that takes a value or a command."""
        # bash puts a word into the line as it is, so one that it would expand there is not offered.
        found = [CompletionItem(name) for name in self._read(ctx) if shlex.quote(name) == name]
        if isinstance(ctx.command, click.Group) and isinstance(param, click.Argument):
            commands = ctx.command.commands
            found += [CompletionItem(name, help=each.get_short_help_str()) for name, each in commands.items()]
        found = [item for item in found if item.value.startswith(incomplete)]
        kind = PATHS.get(_label(param))
        return [*found, CompletionItem(incomplete, type=kind)] if kind else found

    def _read(self, ctx: click.Context) -> list[str]:
        if self._names is None:
            return []
        from appliance.core.config.settings import find_state
        from appliance.core.layout import Layout
        from appliance.core.process.owner import become_owner_of

        state = find_state(ctx.find_root().params.get("state"), os.environ)
        become_owner_of(state)
        return self._names(Layout(state).database, ctx)


def _repos(database: Path, ctx: click.Context) -> list[str]:
    from appliance.core.store.known_names import repo_names

    return repo_names(database)


def _sessions(database: Path, ctx: click.Context) -> list[str]:
    from appliance.core.store.known_names import session_names

    repos = [ctx.params.get(param.name or "") for param in ctx.command.params if _names_of("", param) is _repos]
    return session_names(database, next((repo for repo in repos if isinstance(repo, str)), None))


def _guests(database: Path, ctx: click.Context) -> list[str]:
    from appliance.core.store.known_names import guest_names

    return guest_names(database)


BY_METAVAR: dict[str, Names] = {"SESSION": _sessions, "REPO": _repos}
BY_NAME: dict[str, Names] = {"repo": _repos, "repos": _repos, "session": _sessions, "guest": _guests}
NAMES_OF: dict[str, Names] = {
    **dict.fromkeys(("remove-repo", "enable", "disable", "refresh", "refreshes"), _repos),
    "guest remove": _guests,
}
"""Commands whose argument NAME is one that is there already."""


def _names_of(path: str, param: click.Parameter) -> Names | None:
    """What is known of the values of a parameter; None for nothing."""
    if param.name in ("name", "names") and path in NAMES_OF:
        return NAMES_OF[path]
    return BY_METAVAR.get(_label(param)) or BY_NAME.get(param.name or "")


def _label(param: click.Parameter) -> str:
    """`REPO` of an argument that the help shows as `[REPO]...`."""
    return (param.metavar or "").strip("[].")


def _walk(group: click.Group, *above: str) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        yield " ".join((*above, name)), command
        if isinstance(command, click.Group):
            yield from _walk(command, *above, name)
