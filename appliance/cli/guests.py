"""Known guests: `guest add`, `guest remove`, `guests`."""

from __future__ import annotations

from typing import Any

import click

from appliance.cli.context import Duration, Options, json_option, pass_options
from appliance.cli.output import print_json, print_line, print_table, say
from appliance.core.errors import UsageError
from appliance.core.text import storable


@click.group()
def guest() -> None:
    """Make guests known to this node, and forget them.

    A guest is known by the way that it comes. It writes its own sessions only, and reads the repositories that it was
    given. It needs no credential. docs/guests.md says more.

    \b
    Examples:
      gitmirror.pyz guest add vm-7 --session fix-dns --unix /run/fc/vm-7/v.sock
      gitmirror.pyz guest add vm-8 --session "fix-*" --repo acme/secret --address 172.16.0.8 --ttl 8h
      gitmirror.pyz guest remove vm-7
    """


@guest.command()
@click.argument("name")
@click.option("--session", "sessions", metavar="S", multiple=True, help="It may write this session. S may end in *.")
@click.option("--repo", "repos", metavar="R", multiple=True, help="It may read this repository, even a private one.")
@click.option("--only", is_flag=True, help="It may read no other repositories, not even open ones.")
@click.option("--unix", metavar="PATH", help="It comes by the sockets PATH_9418 (git://) and PATH_9419 (HTTP).")
@click.option("--address", metavar="IP", help="It comes from this address.")
@click.option("--token", is_flag=True, help="Print a token, by which it is known over HTTP.")
@click.option("--ttl", type=Duration(), metavar="D", help="Forget it after this time. Default: when it is removed.")
@json_option
@pass_options
def add(
    options: Options,
    name: str,
    sessions: tuple[str, ...],
    repos: tuple[str, ...],
    only: bool,
    unix: str | None,
    address: str | None,
    token: bool,
    ttl: float | None,
    as_json: bool,
) -> None:
    """Make a guest known.

    Whoever comes by its sockets, from its address or with its token is this guest. With --token, prints the token, this
    once: only its hash is stored. The same command may be repeated, except with --token. Without a running
    serve, the guest is known from the next start on.

    \b
    Example:
      gitmirror.pyz guest add vm-7 --session fix-dns --repo acme/secret --unix /run/fc/vm-7/v.sock
    """
    from appliance.core.store.tokens import LONGEST
    from appliance.core.units import format_duration

    if ttl is not None and ttl > LONGEST:
        raise UsageError(f"--ttl may be at most {format_duration(LONGEST)}", hint="for example --ttl 8h")
    for option, given in (("--session", sessions), ("--repo", repos), ("--unix", (unix,)), ("--address", (address,))):
        if "" in given:
            raise UsageError(f"{option} must not be empty", hint="leave the option out, or give it a value")
    request: dict[str, Any] = {"name": storable(name)}
    request |= {"sessions": [storable(each) for each in sessions]} if sessions else {}
    request |= {"repos": [storable(each) for each in repos]} if repos else {}
    request |= {key: storable(text) for key, text in (("unix", unix), ("address", address)) if text is not None}
    request |= {"only": True} if only else {}
    request |= {"token": True} if token else {}
    request |= {"ttl": ttl} if ttl is not None else {}
    added = options.node(create=True).current().add_guest(request)
    if as_json:
        print_json(added)
    elif added["token"] is not None:
        print_line(added["token"])
    for session, names in added["shared"].items():
        say(f"session {session} may also be written by {_some(names)}")
    if not added["sessions"]:
        say(f"{name} may write no session: guest add --session gives it one")
    until = "it is removed" if added["expires_at"] is None else added["expires_at"]
    say(f"the guest {added['name']} is known by {', '.join(_ways(added))} until {until}")


@guest.command()
@click.argument("name")
@json_option
@pass_options
def remove(options: Options, name: str, as_json: bool) -> None:
    """Forget a guest.

    Ends its connections, removes its sockets and revokes its token. What it recorded stays.

    \b
    Example:
      gitmirror.pyz guest remove vm-7
    """
    removed = options.node().current().remove_guest(name)
    if as_json:
        print_json(removed)
    say(f"the guest {removed['name']} is no longer known")


@click.command()
@json_option
@pass_options
def guests(options: Options, as_json: bool) -> None:
    """List known guests, by name.

    \b
    Example:
      gitmirror.pyz guests
    """
    found = options.node().current().guests()
    if as_json:
        print_json(found)
        return
    if not found:
        say(f"No guest is known: {options.command} guest add NAME")
        return
    headers = ("GUEST", "COMES BY", "SESSIONS", "REPOSITORIES", "EXPIRES", "LAST", "PROBLEM")
    rows = [
        (
            each["name"], ", ".join(_ways(each)), _some(each["sessions"]) or "none", _reads(each),
            each["expires_at"] or "never", _last(each), each["problem"] or "",
        )
        for each in found
    ]  # fmt: skip
    print_table(headers, rows)


def _ways(document: dict[str, Any]) -> list[str]:
    """The ways that a guest comes."""
    ways = [str(document[way]) for way in ("unix", "address") if document[way] is not None]
    return [*ways, "token"] if document["has_token"] else ways


def _some(names: list[str]) -> str:
    """The first of many names."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _reads(document: dict[str, Any]) -> str:
    """Which repositories a guest reads."""
    if document["only"]:
        return _some(document["repos"]) or "none"
    return ", ".join(filter(None, (_some(document["repos"]), "open ones")))


def _last(document: dict[str, Any]) -> str:
    """What a guest did last."""
    last = document["last"]
    return f"{last['at']} {last['what']} {last['repo']}" if last else "nothing"
