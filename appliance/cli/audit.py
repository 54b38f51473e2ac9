"""The log of pushes: `audit`, `audit verify`, `audit export`."""

from __future__ import annotations

import json
import sys

import click

from appliance.cli.context import Options, json_option, pass_options
from appliance.cli.output import print_json, print_table, say

BROKEN = 3


@click.group(invoke_without_command=True)
@click.option("--repo", metavar="R", help="Only this repository.")
@click.option("--session", metavar="S", help="Only this session.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="Most rows.")
@json_option
@pass_options
@click.pass_context
def audit(
    ctx: click.Context, options: Options, repo: str | None, session: str | None, limit: int, as_json: bool
) -> None:
    """The log of every push attempt, newest first: one row for each ref that a guest tried to write.

    \b
    Examples:
      gitmirror.pyz audit --repo jomcgi/homelab --limit 20
      gitmirror.pyz audit verify
      gitmirror.pyz audit export > audit.jsonl
    """
    if ctx.invoked_subcommand is not None:
        return
    found = options.appliance().stores().audit.entries(repo=repo, session=session, limit=limit)
    if as_json:
        print_json(found)
        return
    rows = [
        (
            e["id"],
            e["at"],
            e["repo"],
            e["ref"],
            (e["new"] or "")[:12],
            e["verdict"],
            e["outcome"],
            e["client"],
            e["reason"],
        )
        for e in found
    ]
    headers = ("ID", "AT", "REPOSITORY", "REF", "COMMIT", "VERDICT", "OUTCOME", "CLIENT", "REASON")
    print_table(headers, rows, right=("ID",))


@audit.command()
@click.option("--head", metavar="HASH", help="A hash that was the head once: the log must still contain it.")
@pass_options
def verify(options: Options, head: str | None) -> None:
    """Check the hash chain of the log; names the first event that does not hold, and exits 3.

    \b
    Example:
      gitmirror.pyz audit verify --head "$(cat pinned-head)"
    """
    verdict = options.appliance().stores().audit.verify(head)
    if verdict.broken is not None:
        say(f"the log is broken at event {verdict.broken}: {verdict.reason}")
        sys.exit(BROKEN)
    click.echo(f"{verdict.events} events, the chain holds; head {verdict.head}")


@audit.command()
@pass_options
def export(options: Options) -> None:
    """Print every event of the log as JSON lines, oldest first, as it is hashed.

    \b
    Example:
      gitmirror.pyz audit export | gzip > audit.jsonl.gz
    """
    for event in options.appliance().stores().audit.events():
        click.echo(json.dumps(event, ensure_ascii=True))
