"""Agent sessions: `sessions`, and `session show`, `attachment`, `diff`, `log`, `checkout`, `bundle`, `keep`, `drop`."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import click

from appliance.cli.context import Moment, Options, json_option, pass_options
from appliance.cli.output import binary_output, print_json, print_line, print_table, say, wants_colour
from appliance.cli.session_orders import drop, keep, open_sessions

turn_option = click.option("--turn", type=click.IntRange(1), metavar="N", help="Use this turn; turns count from 1.")


@click.command()
@click.option("--repo", metavar="NAME", help="Show only this repository.")
@click.option("--path", metavar="P", help="Show only those that touched this file, or a file below this directory.")
@click.option("--grep", metavar="TEXT", help="Show only those with TEXT in their name or their commit messages.")
@click.option(
    "--since",
    type=Moment(),
    help="Show only those with a turn since WHEN: 2h (two hours ago), or 2026-11-26T08:00:00Z.",
)
@click.option("--before", type=Moment(), help="Show only those whose last turn was before WHEN: 7d, or a time.")
@click.option("--guest", metavar="NAME", help="Show only those of this known guest.")
@json_option
@pass_options
def sessions(
    options: Options,
    repo: str | None,
    path: str | None,
    grep: str | None,
    since: str | None,
    before: str | None,
    guest: str | None,
    as_json: bool,
) -> None:
    """List agent sessions, newest first.

    In a fleet, these are the sessions of all nodes; NODE took the last turn. P is a path from the top of the
    repository; it is no pattern. TEXT is found in upper and in lower case.

    \b
    Examples:
      gitmirror.pyz sessions --repo jomcgi/homelab
      gitmirror.pyz sessions --path charts/grafana --grep "fix dns" --since 7d
    """
    found = open_sessions(options).search(repo, path, grep, since, say, guest, before)
    if as_json:
        print_json(found)
        return
    is_shared = any(s["node"] for s in found)
    nodes = ["NODE"] if is_shared else []
    headers = (
        "SESSION", "REPOSITORY", "TURNS", "COMMITS", "FILES", "+", "-", "BASE", "LAST", *nodes, "CLIENT", "GUEST", "",
    )  # fmt: skip
    rows = [
        (
            s["session"], s["repo"], s["turns"], s["commits"], s["files_changed"], s["insertions"], s["deletions"],
            (s["base"] or "unrelated")[:12], s["last_at"], *([s["node"]] if is_shared else []), s["client"], s["guest"],
            "kept" if s["kept"] else "",
        )
        for s in found
    ]  # fmt: skip
    print_table(headers, rows, right=("TURNS", "COMMITS", "FILES", "+", "-"))


@click.group()
def session() -> None:
    """Inspect and manage agent sessions.

    SESSION is the session's name, or the first characters of it when no other session starts with them.

    \b
    Examples:
      gitmirror.pyz session show jomcgi/homelab my-session
      gitmirror.pyz session diff jomcgi/homelab my-session --turn 2
      gitmirror.pyz session checkout jomcgi/homelab my-session ./replay
    """


session.add_command(keep)
session.add_command(drop)


@session.command()
@click.argument("repo")
@click.argument("name", metavar="SESSION")
@json_option
@pass_options
def show(options: Options, repo: str, name: str, as_json: bool) -> None:
    """List the turns of a session.

    Shows for each turn the time, the commit, what changed, and how it differs from the previous turn; then the notes
    and the attachments of turns that have any.

    \b
    Example:
      gitmirror.pyz session show jomcgi/homelab my-session
    """
    from appliance.core.recording.comparison import UNRELATED
    from appliance.core.units import format_size

    found = open_sessions(options).show(repo, name)
    if as_json:
        print_json(found)
        return
    start = f"from {found['base']}" if found["base"] else UNRELATED
    print_line(f"{found['session']} in {found['repo']}, {start}")
    if len(found["nodes"]) > 1:
        print_line(f"written on the nodes {', '.join(found['nodes'])}; their turns are in the order of the fleet")
    rows = [
        (
            t["turn"], t["at"], t["commit"][:12], t["files_changed"], t["insertions"], t["deletions"],
            _since(t["since_last"]), t["client"], t["guest"], *([t["node"]] if found["nodes"] else []), t["subject"],
        )
        for t in found["turns"]
    ]  # fmt: skip
    nodes = ["NODE"] if found["nodes"] else []
    headers = ("TURN", "AT", "COMMIT", "FILES", "+", "-", "SINCE LAST", "CLIENT", "GUEST", *nodes, "SUBJECT")
    print_table(headers, rows, right=("TURN", "FILES", "+", "-"))
    for turn in found["turns"]:
        for key, value in turn["notes"].items():
            print_line(f"turn {turn['turn']}  note {key}: {value}")
        for file in turn["attachments"]:
            size = format_size(file["size"])
            print_line(f"turn {turn['turn']}  attachment {file['name']}: {size}, sha256 {file['sha256']}")


@session.command()
@click.argument("repo")
@click.argument("name", metavar="SESSION")
@click.argument("attachment", metavar="NAME")
@click.option(
    "--turn", type=click.IntRange(1), metavar="N", help="That of this turn, not of the newest turn that has NAME."
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Write to this new file, not to stdout."
)
@pass_options
def attachment(options: Options, repo: str, name: str, attachment: str, turn: int | None, output: Path | None) -> None:
    """Write an attachment of a session to stdout.

    An agent attached the file NAME to a turn when it recorded. It may hold anything, so it is not written to a
    terminal.

    \b
    Examples:
      gitmirror.pyz session attachment jomcgi/homelab my-session transcript.json | less
      gitmirror.pyz session attachment jomcgi/homelab my-session screen.png --turn 2 -o screen.png
    """
    from appliance.core.errors import UsageError

    if output is None and sys.stdout.isatty():
        raise UsageError("an attachment is not for a terminal", hint="write it to a file with -o FILE, or into a pipe")
    sessions = open_sessions(options, writes=output)
    with (
        sessions.attachment(repo, name, attachment, turn) as file,
        binary_output(output, sessions.node.files) as stream,
    ):
        shutil.copyfileobj(file, stream)


@session.command()
@click.argument("repo")
@click.argument("name", metavar="SESSION")
@turn_option
@click.option(
    "--against",
    metavar="WHAT",
    help="Compare with its base, the previous turn, or another session: base, previous, SESSION or SESSION@TURN.",
)
@click.option("--stat", is_flag=True, help="Show only the changed files and how much changed in each.")
@click.option("--name-only", is_flag=True, help="Show only the names of the changed files.")
@click.option("--raw", is_flag=True, help="Print the exact patch, control characters and binary files included.")
@pass_options
def diff(
    options: Options,
    repo: str,
    name: str,
    turn: int | None,
    against: str | None,
    stat: bool,
    name_only: bool,
    raw: bool,
) -> None:
    """Show what a session changed, or how it differs from another one.

    Prints the diff against the commit that the session started from; with --turn, the diff of that turn against the
    previous turn.

    With --against, compares the last turn, or the one that --turn names, with something else: `base` is the commit that
    it started from, `previous` is the turn before, SESSION is the last turn of another session of the repository, and
    SESSION@TURN is one turn of it. Two sessions that started from different commits differ also in what the upstream
    changed between those; stderr then says so. A session that is called base or previous needs its turn.

    Control characters in the files are shown as escapes such as \\x1b, on a terminal and in a pipe. git refuses to
    apply a diff that has escapes in it; use --raw for the exact bytes.

    \b
    Examples:
      gitmirror.pyz session diff jomcgi/homelab my-session --stat
      gitmirror.pyz session diff jomcgi/homelab my-session --raw | git apply
      gitmirror.pyz session diff jomcgi/homelab my-session --turn 2 --against base
      gitmirror.pyz session diff jomcgi/homelab my-session --against other-session
      gitmirror.pyz session diff jomcgi/homelab my-session --against other-session@1
    """
    words = [word for word, wanted in (("--stat", stat), ("--name-only", name_only)) if wanted]
    if raw and not words:
        words = ["--binary"]
    sessions = open_sessions(options)
    comparison = sessions.compare(repo, name, turn, against)
    if comparison.new.session != comparison.old.session:
        say(comparison.words)
    if comparison.note:
        say(comparison.note)
    if sessions.print_diff(comparison, words, raw=raw, colour=not raw and wants_colour()):
        say("control characters in the diff are shown as escapes; --raw prints the exact patch")


@session.command()
@click.argument("repo")
@click.argument("name", metavar="SESSION")
@pass_options
def log(options: Options, repo: str, name: str) -> None:
    """List the commits of a session, newest first.

    \b
    Example:
      gitmirror.pyz session log jomcgi/homelab my-session
    """
    from appliance.core.recording.comparison import UNRELATED
    from appliance.core.units import rfc3339

    sessions = open_sessions(options)
    found = sessions.find(repo, name)
    if found["base"] is None:
        say(f"{UNRELATED}: everything is shown")
    for commit in sessions.log(found):
        print_line(f"{commit.oid[:12]}  {rfc3339(commit.at)}  {commit.author}  {commit.subject}")


@session.command()
@click.argument("repo")
@click.argument("name", metavar="SESSION")
@click.argument("directory", type=click.Path(path_type=Path), metavar="DIR")
@turn_option
@pass_options
def checkout(options: Options, repo: str, name: str, directory: Path, turn: int | None) -> None:
    """Check a session out into DIR.

    Use it to run the session's code or to push it as a real branch: `origin` is the upstream.

    \b
    Example:
      gitmirror.pyz session checkout jomcgi/homelab my-session ./replay --turn 2
    """
    chosen = open_sessions(options, writes=directory).checkout(repo, name, Path(os.path.abspath(directory)), turn)
    say(f"{directory} is at {chosen.commit}: {chosen.subject}")


@session.command()
@click.argument("repo")
@click.argument("name", metavar="SESSION")
@turn_option
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Write to this new file, not to stdout."
)
@pass_options
def bundle(options: Options, repo: str, name: str, turn: int | None, output: Path | None) -> None:
    """Write a session as a git bundle.

    `git fetch FILE refs/agents/SESSION` takes it in any clone of the upstream, which needs no access to this node. The
    bundle has the commits up to the last turn, or the one that --turn names, without what the upstream has.

    \b
    Examples:
      gitmirror.pyz session bundle jomcgi/homelab my-session -o my-session.bundle
      git fetch my-session.bundle refs/agents/my-session && git switch -c my-session FETCH_HEAD
      ssh node gitmirror.pyz session bundle jomcgi/homelab my-session > my-session.bundle
    """
    from appliance.core.errors import UsageError
    from appliance.core.units import format_size

    if output is None and sys.stdout.isatty():
        raise UsageError("a bundle is not for a terminal", hint="write it to a file with -o FILE, or into a pipe")
    sessions = open_sessions(options, writes=output)
    chosen = sessions.turn(repo, name, turn)
    with binary_output(output, sessions.node.files) as stream:
        size = sessions.bundle(chosen, stream)
    file = shlex.quote(str(output)) if output else "FILE"
    url = sessions.upstream(repo)
    say(f"{format_size(size)}: `git fetch {file} refs/agents/{chosen.session}` takes it in a clone of {url}")


def _since(changed: dict[str, Any] | None) -> str:
    if changed is None:
        return ""
    return f"{changed['files_changed']} files, +{changed['insertions']} -{changed['deletions']}"
