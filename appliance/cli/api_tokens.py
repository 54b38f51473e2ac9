"""API tokens: `api-token issue`, `api-token list`, `api-token revoke`."""

from __future__ import annotations

import click

from appliance.cli.context import Duration, Options, json_option, pass_options
from appliance.cli.output import print_json, print_line, print_table, say


@click.group("api-token")
def api_token() -> None:
    """Manage the tokens with which programs use the API.

    A program sends its token to the admin port as `Authorization: Bearer TOKEN`. Operators on this machine need none.

    \b
    Examples:
      gitmirror.pyz api-token issue --scope read --name dashboard
      gitmirror.pyz api-token list
      gitmirror.pyz api-token revoke 3
    """


@api_token.command()
@click.option(
    "--scope",
    type=click.Choice(["read", "operate"]),
    required=True,
    help="read shows everything; operate also adds, refreshes, changes and removes.",
)
@click.option("--ttl", type=Duration(), metavar="D", help="How long it stays valid. Default: until it is revoked.")
@click.option("--name", metavar="N", default="", help="A name that `api-token list` shows.")
@json_option
@pass_options
def issue(options: Options, scope: str, ttl: float | None, name: str, as_json: bool) -> None:
    """Create a token and print it.

    It cannot be printed again, because only its hash is stored.

    \b
    Example:
      gitmirror.pyz api-token issue --scope operate --ttl 30d --name platform
    """
    issued = options.node(create=True).current().issue_api_token(scope, ttl, name)
    if as_json:
        print_json(issued)
    else:
        print_line(issued["token"])
    say(f"API token {issued['id']} with scope {scope} is valid until {issued['expires_at'] or 'it is revoked'}")


@api_token.command("list")
@json_option
@pass_options
def list_api_tokens(options: Options, as_json: bool) -> None:
    """List API tokens, newest first.

    Includes expired and revoked tokens, but never the tokens' secrets.

    \b
    Example:
      gitmirror.pyz api-token list
    """
    found = options.node().api_tokens()
    if as_json:
        print_json(found)
        return
    headers = ("ID", "SCOPE", "STATE", "CREATED", "EXPIRES", "LAST USED", "NAME")
    rows = [
        (
            t["id"], t["scope"], t["state"], t["created_at"], t["expires_at"] or "never", t["last_used_at"] or "never",
            t["name"],
        )
        for t in found
    ]  # fmt: skip
    print_table(headers, rows, right=("ID",))


@api_token.command()
@click.argument("number", metavar="ID", type=click.IntRange(1, 2**63 - 1))
@json_option
@pass_options
def revoke(options: Options, number: int, as_json: bool) -> None:
    """Revoke an API token.

    It is refused from the next request on; a running serve needs no restart.

    \b
    Example:
      gitmirror.pyz api-token revoke 3
    """
    revoked = options.node().revoke_api_token(number)
    if as_json:
        print_json(revoked)
    say(f"API token {number} is revoked")
