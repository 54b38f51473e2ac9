"""Read tokens for private mirrors: `token issue`, `token list`, `token revoke`."""

from __future__ import annotations

import click

from appliance.cli.context import Duration, Options, json_option, pass_options
from appliance.cli.output import print_json, print_line, print_table, say


@click.group()
def token() -> None:
    """Manage read tokens for private mirrors.

    A token lets a guest read one private mirror and push its sessions there.

    \b
    Examples:
      gitmirror.pyz token issue --repo acme/secret --ttl 2h
      gitmirror.pyz token list --repo acme/secret
      gitmirror.pyz token revoke 7
    """


@token.command()
@click.option("--repo", metavar="NAME", required=True, help="The repository that the token is for.")
@click.option("--ttl", type=Duration(), default="7d", show_default=True, metavar="D", help="How long it stays valid.")
@click.option("--note", metavar="TEXT", default="", help="A note that `token list` shows.")
@json_option
@pass_options
def issue(options: Options, repo: str, ttl: float, note: str, as_json: bool) -> None:
    """Create a token and print it.

    It cannot be printed again, because only its hash is stored.

    \b
    Example:
      gitmirror.pyz token issue --repo acme/secret --ttl 2h --note "session fix-dns"
    """
    issued = options.node(create=True).current().issue_token(repo, ttl, note)
    if as_json:
        print_json(issued)
    else:
        print_line(issued["token"])
    if not issued["private"]:
        say(f"{repo} is not private: guests read it without a token")
    say(f"token {issued['id']} reads {repo} over HTTP until {issued['expires_at']}")


@token.command("list")
@click.option("--repo", metavar="NAME", help="Show only this repository.")
@json_option
@pass_options
def list_tokens(options: Options, repo: str | None, as_json: bool) -> None:
    """List tokens, newest first.

    Includes expired and revoked tokens, but never the tokens' secrets.

    \b
    Example:
      gitmirror.pyz token list --repo acme/secret
    """
    found = options.node().tokens(repo)
    if as_json:
        print_json(found)
        return
    headers = ("ID", "REPOSITORY", "STATE", "CREATED", "EXPIRES", "LAST USED", "NOTE")
    rows = [
        (t["id"], t["repo"], t["state"], t["created_at"], t["expires_at"], t["last_used_at"] or "never", t["note"])
        for t in found
    ]
    print_table(headers, rows, right=("ID",))


@token.command()
@click.argument("number", metavar="ID", type=click.IntRange(1, 2**63 - 1))
@pass_options
def revoke(options: Options, number: int) -> None:
    """Revoke a token.

    From the next request on, a guest that sends it is treated as if it had sent none.

    \b
    Example:
      gitmirror.pyz token revoke 7
    """
    revoked = options.node().revoke_token(number)
    say(f"token {number} of {revoked['repo']} is revoked")
