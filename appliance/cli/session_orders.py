"""What an operator does to sessions: `session keep` and `session drop`, one or many of a repository."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.context import Duration, Options, json_option, pass_options
from appliance.cli.output import ask, print_json, say, say_error
from appliance.core.errors import GitmirrorError, NotServing

if TYPE_CHECKING:
    from pathlib import Path

    from appliance.core.node.sessions import Sessions


def open_sessions(options: Options, *, writes: Path | None = None) -> Sessions:
    """The sessions of the node that the options name; `writes` is what is to be written outside of it."""
    from appliance.core.node.sessions import Sessions

    return Sessions(options.node(writes=writes or False))


@click.command()
@click.argument("repo")
@click.argument("names", metavar="SESSION...", nargs=-1, required=True)
@click.option("--off", is_flag=True, help="Let retention apply to the sessions again.")
@pass_options
def keep(options: Options, repo: str, names: tuple[str, ...], off: bool) -> None:
    """Exempt sessions from retention, on every node of a fleet.

    \b
    Examples:
      gitmirror.pyz session keep jomcgi/homelab my-session
      gitmirror.pyz session keep jomcgi/homelab my-session other-session --off
    """
    sessions = open_sessions(options)
    for found in _named(sessions, repo, names):
        whole = sessions.keep(repo, found["session"], not off)
        say(f"{whole} is {'subject to retention again' if off else 'exempt from retention'}")


@click.command()
@click.argument("first", metavar="[REPO]", required=False)
@click.argument("rest", metavar="[SESSION]...", nargs=-1)
@click.option("--repo", metavar="NAME", help="The repository; every argument is then a session.")
@click.option(
    "--older-than",
    type=Duration(),
    metavar="AGE",
    help="Delete those whose last turn is older than AGE, such as 7d. Sessions that are kept stay.",
)
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@json_option
@pass_options
def drop(
    options: Options,
    first: str | None,
    rest: tuple[str, ...],
    repo: str | None,
    older_than: float | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Delete sessions now.

    Deletes their refs and their turns, on every node of a fleet. The audit log keeps its rows. It first asks, and says
    how many sessions there are and which is the newest. A session that an agent records into after the question was
    asked stays. When one cannot be deleted the others are deleted all the same, and the command exits with code 1.

    \b
    Examples:
      gitmirror.pyz session drop jomcgi/homelab my-session other-session
      gitmirror.pyz session drop --repo jomcgi/homelab --older-than 7d
    """
    names = rest if repo is None or first is None else (first, *rest)
    repo = repo or first
    if repo is None:
        raise click.UsageError("name a repository and its sessions, or use --repo NAME --older-than AGE")
    if bool(names) == (older_than is not None):
        raise click.UsageError("give either the names of sessions or --older-than AGE")
    sessions = open_sessions(options)
    kept: list[dict[str, Any]] = []
    if older_than is None:
        chosen = _named(sessions, repo, names)
    else:
        chosen, kept = _old(sessions, repo, older_than)
    if chosen and not yes and not ask(_question(repo, chosen, len(kept))):
        say("Nothing was changed.")
        sys.exit(1)
    dropped, failed = _drop(sessions, chosen)
    if as_json:
        errors = [{"session": name, "error": error.message} for name, error in failed]
        print_json({"repo": repo, "dropped": dropped, "kept": [row["session"] for row in kept], "failed": errors})
    else:
        _say_dropped(repo, dropped, len(kept))
    for name, error in failed:
        say_error(GitmirrorError(f"{name} is not deleted: {error.message}", hint=error.hint))
    if failed:
        sys.exit(1)


def _named(sessions: Sessions, repo: str, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """The sessions of those names, each once. Raises the error of the first that cannot be found."""
    found = [sessions.find_whole(repo, name) for name in names]
    return list({row["session"]: row for row in found}.values())


def _old(sessions: Sessions, repo: str, age: float) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The sessions whose last turn is older than `age` seconds, newest first, and those of them that are kept."""
    from appliance.core.units import parse_moment

    sessions.upstream(repo)
    now = time.time()
    # Nothing was recorded before 1970, and no time can be written before the year 1.
    found = sessions.search(repo, before=parse_moment(f"{min(age, now):f}s", now))
    return [row for row in found if not row["kept"]], [row for row in found if row["kept"]]


def _question(repo: str, chosen: list[dict[str, Any]], kept: int) -> str:
    from appliance.core.units import counted

    if len(chosen) == 1 and not kept:
        return f"Delete the session {chosen[0]['session']} of {repo} and its turns?"
    turns = counted(sum(row["turns"] for row in chosen), "turn", "turns")
    newest = max(chosen, key=lambda row: str(row["last_at"]))
    stay = f"; {_stay(kept)}" if kept else ""
    return (
        f"{counted(len(chosen), 'session', 'sessions')} of {repo} with {turns}, the newest of them "
        f"{newest['session']}, last written at {newest['last_at']}{stay}. Delete them?"
    )


def _drop(sessions: Sessions, chosen: list[dict[str, Any]]) -> tuple[list[str], list[tuple[str, GitmirrorError]]]:
    """Drops each session that has no newer turn than the one that was listed; returns what is gone and what failed."""
    dropped, failed = list[str](), list[tuple[str, GitmirrorError]]()
    for row in chosen:
        try:
            sessions.drop_listed(row["repo"], row["session"], row["tip"])
            dropped.append(row["session"])
        except NotServing:
            if not dropped:
                raise
            failed += [
                (each["session"], GitmirrorError("serve has ended")) for each in chosen[len(dropped) + len(failed) :]
            ]
            break
        except GitmirrorError as error:
            failed.append((row["session"], error))
    return dropped, failed


def _say_dropped(repo: str, dropped: list[str], kept: int) -> None:
    from appliance.core.units import counted

    stay = f"; {_stay(kept)}" if kept else ""
    if len(dropped) == 1:
        say(f"{dropped[0]} is deleted{stay}")
    elif dropped:
        say(f"{counted(len(dropped), 'session', 'sessions')} of {repo} are deleted{stay}")
    else:
        say(f"No session of {repo} was deleted{stay}")


def _stay(kept: int) -> str:
    return "1 that is kept stays" if kept == 1 else f"{kept:,} that are kept stay"
